//go:build linux

package connectfail

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// The record of the tracepoint, as in events/sock/inet_sock_set_state/format.
const (
	formatBegin = `name: inet_sock_set_state
ID: 2287
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:const void * skaddr;	offset:8;	size:8;	signed:0;
	field:int oldstate;	offset:16;	size:4;	signed:1;
	field:int newstate;	offset:20;	size:4;	signed:1;
	field:__u16 sport;	offset:24;	size:2;	signed:0;
	field:__u16 dport;	offset:26;	size:2;	signed:0;
	field:__u16 family;	offset:28;	size:2;	signed:0;
`
	// Since Linux 5.6.
	format = formatBegin + `	field:__u16 protocol;	offset:30;	size:2;	signed:0;
	field:__u8 saddr[4];	offset:32;	size:4;	signed:0;
	field:__u8 daddr[4];	offset:36;	size:4;	signed:0;
	field:__u8 saddr_v6[16];	offset:40;	size:16;	signed:0;
	field:__u8 daddr_v6[16];	offset:56;	size:16;	signed:0;

print fmt: "family=%s protocol=%s sport=%hu dport=%hu saddr=%pI4 daddr=%pI4"
`
	// Linux 4.16 to 5.5: protocol has one byte, and the addresses have no alignment.
	format416 = formatBegin + `	field:__u8 protocol;	offset:30;	size:1;	signed:0;
	field:__u8 saddr[4];	offset:31;	size:4;	signed:0;
	field:__u8 daddr[4];	offset:35;	size:4;	signed:0;
	field:__u8 saddr_v6[16];	offset:39;	size:16;	signed:0;
	field:__u8 daddr_v6[16];	offset:55;	size:16;	signed:0;
`
)

var (
	layout56 = layout{
		socket: field{8, 8}, oldState: field{16, 4}, newState: field{20, 4}, sourcePort: field{24, 2}, destPort: field{26, 2},
		protocol: field{30, 2}, source: field{40, 16}, dest: field{56, 16},
	}
	layout416 = layout{
		socket: field{8, 8}, oldState: field{16, 4}, newState: field{20, 4}, sourcePort: field{24, 2}, destPort: field{26, 2},
		protocol: field{30, 1}, source: field{39, 16}, dest: field{55, 16},
	}
)

// TestLayout parses the formats of all kernels, and refuses those that the program cannot read.
func TestLayout(t *testing.T) {
	replace := func(old, replacement string) string {
		t.Helper()
		if strings.Count(format, old) != 1 {
			t.Fatalf("%q is not there once", old)
		}
		return strings.Replace(format, old, replacement, 1)
	}
	tests := []struct {
		name, format string
		want         layout
		err          string
	}{
		{"Linux 5.6", format, layout56, ""},
		{"Linux 4.16", format416, layout416, ""},
		{"empty", "", layout{}, "no skaddr"},
		{"renamed", replace("__u16 sport;", "__u16 source;"), layout{}, "no sport"},
		{"no IPv6", replace(" daddr_v6[16];", " daddr6[16];"), layout{}, "no daddr_v6"},
		{"wider", replace("dport;	offset:26;	size:2;", "dport;	offset:26;	size:4;"), layout{}, "dport has 4 bytes at 26"},
		{"shorter address", replace("offset:40;	size:16;", "offset:40;	size:4;"), layout{}, "saddr_v6 has 4 bytes at 40"},
		{"unaligned", replace("offset:30;	size:2;", "offset:31;	size:2;"), layout{}, "protocol has 2 bytes at 31"},
		{"huge number", replace("offset:30;", "offset:99999999999999999999;"), layout{}, "no protocol"},
		{"beyond", replace("offset:40;	size:16;", "offset:40000;	size:16;"), layout{}, "saddr_v6 has 16 bytes at 40000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseLayout(tt.format)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if tt.err == "" && err != nil || tt.err != "" && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

// A record is the record of the tracepoint for one change of state.
type record struct {
	oldState, newState   uint32
	sourcePort, destPort uint16
	protocol             uint16
	source, destination  string
}

// encode returns the record as the kernel writes it. Bytes that the program does not read are ones.
func (r record) encode(l layout) []byte {
	b := bytes.Repeat([]byte{0xff}, 72)
	binary.NativeEndian.PutUint32(b[l.oldState.offset:], r.oldState)
	binary.NativeEndian.PutUint32(b[l.newState.offset:], r.newState)
	binary.NativeEndian.PutUint16(b[l.sourcePort.offset:], r.sourcePort)
	binary.NativeEndian.PutUint16(b[l.destPort.offset:], r.destPort)
	if l.protocol.size == 1 {
		b[l.protocol.offset] = byte(r.protocol)
	} else {
		binary.NativeEndian.PutUint16(b[l.protocol.offset:], r.protocol)
	}
	source, destination := netip.MustParseAddr(r.source).As16(), netip.MustParseAddr(r.destination).As16()
	copy(b[l.source.offset:], source[:])
	copy(b[l.dest.offset:], destination[:])
	return b
}

// TestProgram runs the program in the kernel with records of both layouts. The kernel does not run
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
		{3, 7, 0, 4, 6, a, a},     // SYN_RECV before
		{7, 2, 0, 5, 6, a, a},     // backwards
		{2, 7, 0, 6, 132, a, a},   // SCTP
	}
	want := []Count{
		{Source: netip.MustParseAddr(a), Destination: netip.MustParseAddrPort(a + ":443"), Failures: 1 << 40},
		{Source: netip.MustParseAddr(a), Destination: netip.MustParseAddrPort(a + ":65535"), Failures: 1},
		{Source: netip.MustParseAddr(b), Destination: netip.MustParseAddrPort("[2001:db8::ff00:ee]:443"), Failures: 1},
	}
	known, err := readStructs()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		layout  layout
		structs *structs
		records []record
		alone   error // NoAncestors
	}{
		// Its two bytes begin, or end, with that of TCP.
		{"Linux 5.6", layout56, nil, append(records, record{2, 7, 0, 7, 262, a, a}, record{2, 7, 0, 8, 6 << 8, a, a}), checkAncestors()},
		{"Linux 4.16", layout416, nil, records, checkAncestors()},
		{"no ancestors", layout56, nil, records, errNoAncestors},
		// Nothing is at the address in the record, 0xffffffffffffffff.
		{"namespaces", layout56, known, records, checkAncestors()},
		{"other alignment", layout{
			socket: field{8, 8}, oldState: field{16, 4}, newState: field{20, 4}, sourcePort: field{24, 2}, destPort: field{26, 2},
			protocol: field{30, 2}, source: field{36, 16}, dest: field{54, 16},
		}, nil, records, checkAncestors()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := newProbe(3)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			unlimited(t, p)
			p.NoAncestors = tt.alone
			spec := p.spec(tt.layout, tt.structs)
			if program, err := ebpf.NewProgram(spec); err != nil {
				t.Errorf("as it is: %v", err)
			} else {
				program.Close()
			}
			spec.Type = ebpf.RawTracepoint
			program, err := ebpf.NewProgram(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			for _, r := range tt.records {
				if got, err := program.Run(&ebpf.RunOptions{Context: r.encode(tt.layout)}); err != nil || got != 1 {
					t.Fatalf("run: %d, %v", got, err)
				}
			}
			// And many more of the first.
			const many = 1 << 40
			if _, err := p.table.slots.WriteAt(binary.NativeEndian.AppendUint64(nil, many), slotFailures); err != nil {
				t.Fatal(err)
			}
			got, rest, err := p.Counts(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if rest != 1 { // the table has three slots
				t.Errorf("rest is %d, want 1", rest)
			}
			slices.SortFunc(got, func(a, b Count) int {
				return cmp.Compare(a.Source.String()+a.Destination.String(), b.Source.String()+b.Destination.String())
			})
			for i, c := range got {
				// That of the test itself. Without namespaces, its ancestor is the tenant.
				if tt.structs == nil && c.Tenant != c.Ancestor || tt.structs != nil && c.Tenant != 0 || c.Cgroup == 0 {
					t.Errorf("tenant %d, control group %d of %d", c.Tenant, c.Cgroup, c.Ancestor)
				}
				if tt.alone != nil && c.Ancestor != c.Cgroup {
					t.Errorf("ancestor %d, want the control group %d", c.Ancestor, c.Cgroup)
				}
				got[i].Tenant, got[i].Cgroup, got[i].Ancestor = 0, 0, 0
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}
