//go:build linux

package cilium_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cilium"
	"ephemeral_port_exporter/collector/cilium/ciliumtest"
)

// flowsOf returns all flows, with their number.
func flowsOf(tb testing.TB, mount string) map[cilium.Flow]int {
	tb.Helper()
	maps, err := cilium.Open(mount)
	if err != nil {
		tb.Fatal(err)
	}
	defer maps.Close()
	got := map[cilium.Flow]int{}
	if err := maps.Flows(time.Now().Add(time.Minute), func(f *cilium.Flow) { got[*f]++ }); err != nil {
		tb.Fatal(err)
	}
	return got
}

// TestFlows has Cilium's datapath translate connections of each kind.
func TestFlows(t *testing.T) {
	d := ciliumtest.New(t, "v1.20.2")
	want := map[cilium.Flow]int{}
	for i, c := range []struct {
		protocol cilium.Protocol
		from, to string
		tracked  bool
		flags    uint16
		state    cilium.State
	}{
		{cilium.TCP, "10.1.0.1:40000", "192.0.2.1:443", false, 0, cilium.NoConnection},
		{cilium.TCP, "10.1.0.1:40001", "192.0.2.1:443", true, 0, cilium.SynSent},
		{cilium.TCP, "10.1.0.1:40002", "192.0.2.1:443", true, ciliumtest.SeenNonSYN, cilium.Connected},
		{cilium.TCP, "10.1.0.1:40003", "192.0.2.1:443", true, ciliumtest.SeenNonSYN | ciliumtest.RxClosing, cilium.Closing},
		{cilium.TCP, "10.1.0.1:40004", "192.0.2.1:443", true, ciliumtest.SeenNonSYN | ciliumtest.TxClosing, cilium.Closing},
		{cilium.TCP, "10.1.0.1:40005", "192.0.2.1:443", true, ciliumtest.SeenNonSYN | ciliumtest.RxClosing | ciliumtest.TxClosing, cilium.Closed},
		{cilium.TCP, "10.1.0.2:40005", "192.0.2.2:80", true, ciliumtest.SeenNonSYN, cilium.Connected},
		{cilium.UDP, "10.1.0.1:40000", "192.0.2.53:53", true, 0, cilium.Connected},
		{cilium.UDP, "10.1.0.1:99", "192.0.2.53:53", false, 0, cilium.NoConnection},
		{cilium.TCP, "[2001:db8:1::1]:40000", "[2001:db8::7]:443", true, ciliumtest.SeenNonSYN, cilium.Connected},
		{cilium.UDP, "[2001:db8:1::1]:40000", "[2001:db8::7]:53", false, 0, cilium.NoConnection},
	} {
		from, to := netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to)
		port, granted := d.Send(uint8(c.protocol), from, to)
		if !granted || from.Port() >= ciliumtest.FirstPort && port != from.Port() {
			t.Fatalf("connection %d got %d, %v", i, port, granted)
		}
		translated := ciliumtest.Address4
		if from.Addr().Is6() {
			translated = ciliumtest.Address6
		}
		if c.tracked {
			d.Track(uint8(c.protocol), from, to, c.flags)
		}
		want[cilium.Flow{Protocol: c.protocol, State: c.state, Client: from, Translated: netip.AddrPortFrom(translated, port), Destination: to}] = 1
	}
	equal := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, flowsOf(t, d.Mount), equal); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	maps, err := cilium.Open(d.Mount)
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	tries, known := maps.Tries()
	if failures, err := maps.Failures(); tries != 32 || !known || failures != 0 || err != nil {
		t.Errorf("%d tries, %v; %d failures, %v", tries, known, failures, err)
	}
	if err := maps.Flows(time.Now(), func(*cilium.Flow) {}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
}

// names are those of the maps of IPv4, with the sizes of their keys and values.
var names = map[string][2]uint32{
	"cilium_snat_v4_external": {14, 40}, "cilium_ct4_global": {14, 56}, "cilium_ct_any4_global": {14, 56}, "cilium_lxc": {20, 48},
}

// pin makes the maps of a host of Cilium, with so many entries at most.
func pin(tb testing.TB, entries uint32) (mount string) {
	tb.Helper()
	mount = ciliumtest.MountBPF(tb)
	for name, size := range names {
		pinOne(tb, mount, name, size, entries)
	}
	return mount
}

// pinOne makes a map in place of the one that has its name.
func pinOne(tb testing.TB, mount, name string, size [2]uint32, entries uint32) *ebpf.Map {
	tb.Helper()
	path := filepath.Join(ciliumtest.Pins(tb, mount), name)
	_ = os.Remove(path)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: size[0], ValueSize: size[1], MaxEntries: entries})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	if err := m.Pin(path); err != nil {
		tb.Fatal(err)
	}
	return m
}

// TestOpenFails checks what is said of maps that cannot be read. None of it may look like maps without flows.
func TestOpenFails(t *testing.T) {
	remove := func(names ...string) func(t *testing.T, mount string) {
		return func(t *testing.T, mount string) {
			for _, name := range names {
				if err := os.Remove(filepath.Join(mount, "tc/globals", name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	other := func(name string, key, value uint32) func(t *testing.T, mount string) {
		return func(t *testing.T, mount string) { pinOne(t, mount, name, [2]uint32{key, value}, 8) }
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, mount string)
		err    error
		empty  bool
	}{
		{"as it is", func(*testing.T, string) {}, nil, false},
		{"no source NAT", remove("cilium_snat_v4_external"), nil, true},
		{"no Cilium", remove("cilium_snat_v4_external", "cilium_lxc", "cilium_ct4_global", "cilium_ct_any4_global"), fs.ErrNotExist, false},
		{"no file system", func(t *testing.T, mount string) {
			if err := unix.Mount("tmpfs", mount, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(mount, 0) })
		}, cilium.ErrNoFileSystem, false},
		{"a directory of another user", func(t *testing.T, mount string) {
			if err := os.Chown(filepath.Join(mount, "tc/globals"), 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}, fs.ErrNotExist, false},
		{"no connections", remove("cilium_ct4_global"), fs.ErrNotExist, false},
		{"other entries", other("cilium_snat_v4_external", 14, 48), cilium.ErrUnknown, false},
		{"other tuples", other("cilium_snat_v4_external", 16, 40), cilium.ErrUnknown, false},
		{"other connections", other("cilium_ct_any4_global", 14, 64), cilium.ErrUnknown, false},
		{"other counters", other("cilium_snat_v4_alloc_retries", 4, 8), cilium.ErrUnknown, false},
		{"other tuples of IPv6", other("cilium_snat_v6_external", 36, 56), cilium.ErrUnknown, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mount := pin(t, 8)
			tt.change(t, mount)
			maps, err := cilium.Open(mount)
			if !errors.Is(err, tt.err) || err != nil && tt.err == nil {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			defer maps.Close()
			if maps.Empty() != tt.empty {
				t.Errorf("empty: %v", maps.Empty())
			}
			if _, known := maps.Tries(); known {
				t.Error("a version that does not count tries is said to")
			}
		})
	}
}

// put adds the two entries of a connection to the NAT map of IPv4.
func put(tb testing.TB, m *ebpf.Map, i uint32) {
	tb.Helper()
	var in, out [14]byte
	var value [40]byte
	copy(in[:], []byte{198, 51, 100, 1, 192, 0, 2, byte(i >> 15)})
	binary.BigEndian.PutUint16(in[8:], uint16(i)|1<<15)
	binary.BigEndian.PutUint16(in[10:], 443)
	in[12], in[13] = 6, 1
	copy(value[32:], []byte{10, 1, byte(i >> 8), byte(i), 128, 0})
	copy(out[:], in[4:8])
	copy(out[4:], value[32:36])
	out[12] = 6
	copy(out[8:], in[10:12])
	copy(out[10:], in[8:10])
	if err := errors.Join(m.Put(in, value), m.Put(out, value)); err != nil {
		tb.Error(err)
	}
}

// TestFlowsWhileChanged reads a map while connections come and go. None of those that are there all the time may be missing or appear twice.
func TestFlowsWhileChanged(t *testing.T) {
	mount := pin(t, 1<<16)
	m := pinOne(t, mount, "cilium_snat_v4_external", names["cilium_snat_v4_external"], 1<<16)
	const steady = 10000
	for i := range uint32(steady) {
		put(t, m, i)
	}
	var stop atomic.Bool
	done := make(chan bool)
	go func() {
		defer close(done)
		var key [14]byte
		for i := uint32(0); !stop.Load(); i++ {
			key = [14]byte{198, 51, 100, 1, 192, 0, 2, 200, byte(i >> 8 & 0xf), byte(i), 1, 187, 6, 1}
			_ = m.Put(key, [40]byte{})
			if i%2 == 1 {
				_ = m.Delete(key)
			}
		}
	}()
	for range 5 {
		n := 0
		for f, times := range flowsOf(t, mount) {
			if f.Destination.Addr().As4()[3] == 200 {
				continue
			}
			if n++; times != 1 {
				t.Errorf("%v is listed %d times", f, times)
			}
		}
		if n != steady {
			t.Errorf("%d flows, want %d", n, steady)
		}
	}
	stop.Store(true)
	<-done
}

// BenchmarkFlows reads a map that is nearly full: 500,000 entries of 250,000 connections, of which a tenth have ended.
func BenchmarkFlows(b *testing.B) {
	mount := pin(b, 1<<19)
	m := pinOne(b, mount, "cilium_snat_v4_external", names["cilium_snat_v4_external"], 1<<19)
	for i := range uint32(250000) {
		put(b, m, i)
	}
	for f := range flowsOf(b, mount) {
		if f.Translated.Port()%10 != 0 {
			ciliumtest.Track(b, mount, 6, f.Client, f.Destination, ciliumtest.SeenNonSYN)
		}
	}
	maps, err := cilium.Open(mount)
	if err != nil {
		b.Fatal(err)
	}
	defer maps.Close()
	for b.Loop() {
		n := 0
		if err := maps.Flows(time.Now().Add(time.Minute), func(*cilium.Flow) { n++ }); err != nil || n < 240000 {
			b.Fatal(fmt.Errorf("%d flows: %w", n, err))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/250000, "µs/flow")
}
