//go:build linux

package ciliumtest

import (
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/bpf"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// The range of the datapath, above the default ports of services, and the addresses to which it translates.
const (
	FirstPort = 32768
	Ports     = 32768
)

// The addresses to which the datapath translates.
var (
	Address4 = netip.MustParseAddr("198.51.100.1")
	Address6 = netip.MustParseAddr("2001:db8:5::1")
)

// A Datapath is the source NAT of Cilium, with its maps pinned in a BPF file system of its own.
type Datapath struct {
	tb      testing.TB
	Mount   string // of the BPF file system
	program *ebpf.Program
	maps    map[string]*ebpf.Map
}

//go:embed testdata/masquerade.c
var masquerade []byte

// New compiles and loads the datapath of a version of Cilium, such as v1.20.2. Those before 1.20 have IPv4 only. Its module comes from the Go module proxy.
func New(tb testing.TB, version string) *Datapath {
	tb.Helper()
	spec, err := ebpf.LoadCollectionSpec(compile(tb, version))
	if err != nil {
		tb.Fatal(err)
	}
	for name, m := range spec.Maps {
		m.Pinning, m.Extra = ebpf.PinNone, nil // in Extra, old versions have what their loader knows
		m.Name = agentNames.Replace(name)
		if m.Name == "cilium_lxc" || strings.HasPrefix(m.Name, "cilium_snat_") || strings.HasPrefix(m.Name, "cilium_ct") {
			m.Pinning = ebpf.PinByName
		}
	}
	d := &Datapath{tb: tb, Mount: MountBPF(tb)}
	dir := Pins(tb, d.Mount)
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if err != nil {
		tb.Fatalf("load the datapath: %+v", err)
	}
	tb.Cleanup(c.Close)
	d.program, d.maps = c.Programs["masquerade"], map[string]*ebpf.Map{}
	for name, m := range c.Maps {
		d.maps[agentNames.Replace(name)] = m
	}
	return d
}

// agentNames makes the names that the agent gives to maps, from those that old versions have without an agent.
var agentNames = strings.NewReplacer("test_", "", "_ct_tcp4_65535", "_ct4_global", "_ct_any4_65535", "_ct_any4_global", "_ct_tcp6_65535", "_ct6_global", "_ct_any6_65535", "_ct_any6_global")

// compile returns the path of the object.
func compile(tb testing.TB, version string) string {
	tb.Helper()
	clang, err := exec.LookPath("clang-14")
	if err != nil {
		if os.Getenv("CI") != "" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	download := exec.Command("go", "mod", "download", "-json", "github.com/cilium/cilium@"+version)
	download.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
	out, err := download.Output()
	if err != nil {
		tb.Fatalf("%v: %v: %s", download.Args, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		tb.Fatal(err)
	}
	headers := filepath.Join(module.Dir, "bpf")
	object := filepath.Join(tb.TempDir(), "masquerade.o")
	minor := strings.Split(version, ".")[1]
	cmd := exec.Command(clang, "--target=bpf", "-std=gnu99", "-nostdinc", "-ftrap-function=__undefined_trap", "-O2", "-g", "-mcpu=v3", "-w",
		"-I"+headers, "-I"+filepath.Join(headers, "include"), "-D__NR_CPUS__=2", "-DHAVE_LARGE_INSN_LIMIT", "-DVERSION="+minor, "-x", "c", "-c", "-", "-o", object)
	cmd.Stdin = strings.NewReader(string(masquerade))
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("compile the datapath of Cilium %s: %v: %s", version, err, out)
	}
	return object
}

// MountBPF mounts a BPF file system until the test ends.
func MountBPF(tb testing.TB) string {
	tb.Helper()
	netnstest.HostRoot(tb)
	bpf.RaiseMemlock() // for the maps of the test
	dir := tb.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=700"); err != nil {
		tb.Fatalf("mount a BPF file system: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// Pins makes the directory in which Cilium pins its maps.
func Pins(tb testing.TB, mount string) string {
	tb.Helper()
	dir := filepath.Join(mount, "tc", "globals")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Send passes the first packet of a connection through the datapath: of protocol 6 or 17, from an address of a pod. It returns the port
// that this got. granted is false if it got none.
func (d *Datapath) Send(protocol uint8, from, to netip.AddrPort) (port uint16, granted bool) {
	d.tb.Helper()
	in := packet(protocol, from, to)
	run := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256)}
	code, err := d.program.Run(&run)
	if err != nil {
		d.tb.Fatal(err)
	}
	l := layoutOf(from.Addr())
	if source, _ := netip.AddrFromSlice(run.DataOut[l.source : l.source+l.address]); source == Address4 || source == Address6 {
		return binary.BigEndian.Uint16(run.DataOut[l.ports:]), true
	}
	const noMapping = -167 // DROP_NAT_NO_MAPPING of bpf/lib/drop_reasons.h
	if int32(code) != noMapping {
		d.tb.Fatalf("the datapath of Cilium returns %d for a packet from %v to %v", int32(code), from, to)
	}
	return 0, false
}

// Forget removes a connection that got a port from the NAT map, as the agent does when it collects it.
func (d *Datapath) Forget(protocol uint8, from, to netip.AddrPort, port uint16) {
	d.tb.Helper()
	nat, translated := d.nat(from)
	for _, key := range [][]byte{
		tuple(protocol, incoming, netip.AddrPortFrom(translated, port), to),
		tuple(protocol, outgoing, to, from),
	} {
		if err := nat.Delete(key); err != nil {
			d.tb.Fatalf("forget %v to %v: %v", from, to, err)
		}
	}
}

// nat returns the NAT map for a client, and the address to which it is translated.
func (d *Datapath) nat(from netip.AddrPort) (*ebpf.Map, netip.Addr) {
	if from.Addr().Is4() {
		return d.maps["cilium_snat_v4_external"], Address4
	}
	return d.maps["cilium_snat_v6_external"], Address6
}

// Flags of an entry of connection tracking.
const (
	RxClosing  = 1 << 0
	TxClosing  = 1 << 1
	SeenNonSYN = 1 << 4
)

// Track has Cilium track a connection, with these flags, as its program at a pod does.
func (d *Datapath) Track(protocol uint8, from, to netip.AddrPort, flags uint16) {
	d.tb.Helper()
	Track(d.tb, d.Mount, protocol, from, to, flags)
}

// Track is Datapath.Track for the maps that are pinned in a BPF file system.
func Track(tb testing.TB, mount string, protocol uint8, from, to netip.AddrPort, flags uint16) {
	tb.Helper()
	name := "cilium_ct"
	if protocol == 17 {
		name += "_any"
	}
	if from.Addr().Is4() {
		name += "4_global"
	} else {
		name += "6_global"
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(mount, "tc", "globals", name), nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer m.Close()
	entry := make([]byte, m.ValueSize())
	binary.NativeEndian.PutUint16(entry[36:], flags)
	// The addresses are swapped, see struct ipv4_ct_tuple of bpf/lib/common.h.
	key := tuple(protocol, outgoing, netip.AddrPortFrom(from.Addr(), to.Port()), netip.AddrPortFrom(to.Addr(), from.Port()))
	if err := m.Put(key, entry); err != nil {
		tb.Fatalf("track %v to %v: %v", from, to, err)
	}
}

// Flags of a tuple.
const (
	outgoing = 0
	incoming = 1
)

// tuple returns a key: struct ipv4_ct_tuple or ipv6_ct_tuple of bpf/lib/common.h, of which daddr and dport come first.
func tuple(protocol, flags uint8, destination, source netip.AddrPort) []byte {
	key := append(destination.Addr().AsSlice(), source.Addr().AsSlice()...)
	key = binary.BigEndian.AppendUint16(key, destination.Port())
	key = binary.BigEndian.AppendUint16(key, source.Port())
	return append(key, protocol, flags)
}

// A layout has offsets in a packet.
type layout struct{ source, address, ports int }

func layoutOf(a netip.Addr) layout {
	if a.Is4() {
		return layout{14 + 12, 4, 14 + 20}
	}
	return layout{14 + 8, 16, 14 + 40}
}

// packet returns an Ethernet frame with the first packet of a connection.
func packet(protocol uint8, from, to netip.AddrPort) []byte {
	l := layoutOf(from.Addr())
	p := make([]byte, l.ports+20)
	ip := p[14:]
	if from.Addr().Is4() {
		binary.BigEndian.PutUint16(p[12:], unix.ETH_P_IP)
		ip[0], ip[8], ip[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	} else {
		binary.BigEndian.PutUint16(p[12:], unix.ETH_P_IPV6)
		ip[0], ip[6], ip[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(ip[4:], 20)
	}
	copy(p[l.source:], from.Addr().AsSlice())
	copy(p[l.source+l.address:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[l.ports:], from.Port())
	binary.BigEndian.PutUint16(p[l.ports+2:], to.Port())
	if protocol == unix.IPPROTO_TCP {
		p[l.ports+12], p[l.ports+13] = 5<<4, 2 // SYN
	} else {
		binary.BigEndian.PutUint16(p[l.ports+4:], 20)
	}
	return p
}
