//go:build linux

package trace

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// recordOffsets returns where the fields of the tracepoint's record are.
func recordOffsets(t *testing.T) map[string]uint32 {
	t.Helper()
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var record *btf.Struct
	if err := spec.TypeByName("trace_event_raw_inet_sock_set_state", &record); err != nil {
		t.Fatal(err)
	}
	offsets := map[string]uint32{}
	for _, m := range record.Members {
		offsets[m.Name] = m.Offset.Bytes()
	}
	return offsets
}

// A record is the record of the tracepoint for one change of state.
type record struct {
	oldState, newState   uint32
	sourcePort, destPort uint16
	protocol             uint16
	source, destination  string
}

// encode returns the record as the kernel writes it. Bytes that the program does not read are ones.
func (r record) encode(offsets map[string]uint32) []byte {
	b := bytes.Repeat([]byte{0xff}, 80)
	binary.NativeEndian.PutUint32(b[offsets["oldstate"]:], r.oldState)
	binary.NativeEndian.PutUint32(b[offsets["newstate"]:], r.newState)
	binary.NativeEndian.PutUint16(b[offsets["sport"]:], r.sourcePort)
	binary.NativeEndian.PutUint16(b[offsets["dport"]:], r.destPort)
	binary.NativeEndian.PutUint16(b[offsets["protocol"]:], r.protocol)
	source, destination := netip.MustParseAddr(r.source).As16(), netip.MustParseAddr(r.destination).As16()
	copy(b[offsets["saddr_v6"]:], source[:])
	copy(b[offsets["daddr_v6"]:], destination[:])
	return b
}

// commandOf returns the command of a process.
func commandOf(t *testing.T, pid int) string {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(comm), "\n")
}

// TestProgram runs the program in the kernel with records. The kernel does not run
// TRACEPOINT programs on request. So the program has type RAW_TRACEPOINT here, which reads its
// context by the same rules.
func TestProgram(t *testing.T) {
	netnstest.Tracefs(t)
	const a, b = "198.51.100.1", "2001:db8::1"
	records := []record{
		{2, 7, 0, 443, 6, a, a},
		{2, 7, 0, 443, 6, a, a},
		{2, 7, 0, 65535, 6, a, a},
		{2, 7, 0, 443, 6, b, "2001:db8::ff00:ee"},
		{2, 7, 0, 443, 6, "203.0.113.255", a},

		{2, 7, 40000, 1, 6, a, a}, // had a port
		{2, 7, 256, 1, 6, a, a},   // that has a byte that is 0
		{1, 7, 0, 2, 6, a, a},     // ESTABLISHED before
		{2, 1, 0, 3, 6, a, a},     // ESTABLISHED then
		{1, 4, 0, 9, 6, a, a},     // FIN_WAIT1 then
		{3, 7, 0, 4, 6, a, a},     // SYN_RECV before
		{7, 2, 0, 5, 6, a, a},     // backwards
		{2, 7, 0, 6, 132, a, a},   // SCTP
		// The two bytes of these begin, or end, with that of TCP.
		{2, 7, 0, 7, 262, a, a},
		{2, 7, 0, 8, 6 << 8, a, a},
	}
	want := []Count{
		{Call: Connect, Source: netip.MustParseAddr(a), Destination: netip.MustParseAddrPort(a + ":443"), Events: 1 << 40},
		{Call: Connect, Source: netip.MustParseAddr(a), Destination: netip.MustParseAddrPort(a + ":65535"), Events: 1},
		{Call: Connect, Source: netip.MustParseAddr(b), Destination: netip.MustParseAddrPort("[2001:db8::ff00:ee]:443"), Events: 1},
	}
	offsets := recordOffsets(t)
	command := commandOf(t, os.Getpid())
	for _, tt := range []struct {
		name                  string
		namespaces, ancestors bool
	}{
		{"neither", false, false},
		{"ancestors", false, checkAncestors() == nil},
		{"namespaces", checkNamespaces() == nil, false}, // nothing is at the address in the record, 0xffffffffffffffff
		{"both", checkNamespaces() == nil, checkAncestors() == nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec, err := newSpec(3, tt.namespaces, tt.ancestors, checkRange() == nil)
			if err != nil {
				t.Fatal(err)
			}
			spec.Programs["set_state"].Type = ebpf.RawTracepoint
			p, err := newProbe(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			unlimited(t, p)
			for _, r := range records {
				if got, err := p.objects.SetState.Run(&ebpf.RunOptions{Context: r.encode(offsets)}); err != nil || got != 1 {
					t.Fatalf("run: %d, %v", got, err)
				}
			}
			// And many more of the first.
			const many = 1 << 40
			if _, err := p.Failures.slots.WriteAt(binary.NativeEndian.AppendUint64(nil, many), slotEvents); err != nil {
				t.Fatal(err)
			}
			got, rest, err := p.Failures.Counts(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if rest.Connects != 1 { // the table has three slots
				t.Errorf("rest is %d, want 1", rest)
			}
			slices.SortFunc(got, func(a, b Count) int {
				return cmp.Compare(a.Source.String()+a.Destination.String(), b.Source.String()+b.Destination.String())
			})
			for i, c := range got {
				// That of the test itself. Without namespaces, its ancestor is the tenant.
				if !tt.namespaces && c.Tenant != c.Ancestor || tt.namespaces && c.Tenant != 0 || c.Cgroup == 0 {
					t.Errorf("tenant %d, control group %d of %d", c.Tenant, c.Cgroup, c.Ancestor)
				}
				if !tt.ancestors && c.Ancestor != c.Cgroup {
					t.Errorf("ancestor %d, want the control group %d", c.Ancestor, c.Cgroup)
				}
				if c.Last.PID != os.Getpid() || c.Last.Command != command {
					t.Errorf("by %+v, want %d, %s", c.Last, os.Getpid(), command)
				}
				got[i].Tenant, got[i].Cgroup, got[i].Ancestor, got[i].Last = 0, 0, 0, Process{}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}
