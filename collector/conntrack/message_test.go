//go:build linux

package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

var (
	compareAddrs = cmpopts.EquateComparable(netip.AddrPort{})

	testRequest = sockdiagtest.Request{Type: uint16(typeGet), Sequence: 7}

	client4     = netip.MustParseAddrPort("10.0.0.2:40000")
	translated4 = netip.MustParseAddrPort("203.0.113.1:1024")
	service4    = netip.MustParseAddrPort("10.96.0.1:443")
	server4     = netip.MustParseAddrPort("10.1.0.2:8443")
	client6     = netip.MustParseAddrPort("[fd00::2]:40000")
	translated6 = netip.MustParseAddrPort("[2001:db8::1]:1024")
	server6     = netip.MustParseAddrPort("[2001:db8::2]:443")
)

// tcp4 is a flow as the kernel sends it, and what it means.
var (
	tcp4 = conntracktest.Flow{
		Protocol: unix.IPPROTO_TCP, State: 7,
		Original: conntracktest.Tuple{Source: client4, Destination: service4},
		Reply:    conntracktest.Tuple{Source: server4, Destination: translated4},
		Status:   0x1b6, Timeout: 119,
	}
	wantTCP4 = Flow{
		Protocol: TCP, State: TimeWait,
		Original: Tuple{client4, service4}, Reply: Tuple{server4, translated4},
		Status: 0x1b6,
	}
	udp6 = conntracktest.Flow{
		Protocol: unix.IPPROTO_UDP,
		Original: conntracktest.Tuple{Source: client6, Destination: server6},
		Reply:    conntracktest.Tuple{Source: server6, Destination: translated6},
		Status:   0x19a, Timeout: 30,
	}
	wantUDP6 = Flow{
		Protocol: UDP, Original: Tuple{client6, server6}, Reply: Tuple{server6, translated6},
		Status: 0x19a,
	}
)

// row returns the row of a flow.
func row(r sockdiagtest.Request, f conntracktest.Flow) []byte {
	return r.Message(uint16(typeNew), unix.NLM_F_MULTI, f.Body())
}

// with returns a copy of f that change has changed.
func with(f conntracktest.Flow, change func(*conntracktest.Flow)) conntracktest.Flow {
	change(&f)
	return f
}

// patch returns b with the bytes at offset replaced.
func patch(b []byte, offset int, with ...byte) []byte {
	b = slices.Clone(b)
	copy(b[offset:], with)
	return b
}

// native32 returns n as bytes in native order.
func native32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// attr returns an attribute whose header says length.
func attr(length, typ uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, length)
	return append(binary.NativeEndian.AppendUint16(b, typ), value...)
}

// nest returns an attribute with others in it.
func nest(typ uint16, attrs ...[]byte) []byte {
	value := slices.Concat(attrs...)
	return attr(uint16(4+len(value)), typ|0x8000, value...)
}

// TestReplyErrors checks what is wrong with rows, and the explanations. What can be wrong with any message of netlink
// is tested in nlconn.
func TestReplyErrors(t *testing.T) {
	r := testRequest
	whole := row(r, tcp4)
	// The row with other attributes behind it, of which the last one of a type counts.
	and := func(attrs ...[]byte) []byte {
		return r.Message(uint16(typeNew), 0, slices.Concat(tcp4.Body(), slices.Concat(attrs...)))
	}
	only := func(attrs ...[]byte) []byte {
		return r.Message(uint16(typeNew), 0, slices.Concat([]byte{unix.AF_INET, 0, 0, 0}, slices.Concat(attrs...)))
	}
	ip := nest(1, attr(8, 1, 10, 0, 0, 1), attr(8, 2, 10, 0, 0, 2))
	proto := nest(2, attr(5, 1, 6, 0, 0, 0), attr(6, 2, 0, 1, 0, 0), attr(6, 3, 0, 2, 0, 0))
	ip6 := nest(1, attr(20, 3, client6.Addr().AsSlice()...), attr(20, 4, server6.Addr().AsSlice()...))
	good := slices.Concat(ip, proto)
	tests := []struct {
		name     string
		datagram []byte
		want     error
		text     string
	}{
		{"half a row", whole[:len(whole)/2], ErrMalformed, "bytes left"},
		{"row without body", r.Message(uint16(typeNew), 0, nil), ErrMalformed, "flow of 0 bytes, expected at least 4"},
		{"row of 3 bytes", r.Message(uint16(typeNew), 0, []byte{unix.AF_INET, 0, 0}), ErrMalformed, "flow of 3 bytes, expected at least 4"},
		{"second message truncated", append(slices.Clone(whole), whole[:20]...), ErrMalformed, "20 bytes left"},
		{"bytes left over", append(slices.Clone(whole), 0, 0), ErrMalformed, "2 bytes, expected a message header"},
		{"unknown message", r.Message(99, 0, tcp4.Body()), ErrMalformed, "type 99"},
		{"row of another type", r.Message(uint16(typeGet), 0, tcp4.Body()), ErrMalformed, "type 257"},
		{"no attributes", only(), ErrMalformed, "flow without addresses"},
		{"no reply", only(nest(1, good)), ErrMalformed, "flow without addresses"},
		{"no original", only(nest(2, good)), ErrMalformed, "flow without addresses"},
		{"no addresses", only(nest(1, proto), nest(2, good)), ErrMalformed, "flow without addresses"},
		{"one address", only(nest(1, nest(1, attr(8, 1, 10, 0, 0, 1)), proto), nest(2, good)), ErrMalformed, "flow without addresses"},
		{"no ports", only(nest(1, ip, nest(2, attr(5, 1, 6, 0, 0, 0))), nest(2, good)), ErrMalformed, "flow without addresses"},
		{"one port", only(nest(1, good), nest(2, ip, nest(2, attr(5, 1, 6, 0, 0, 0), attr(6, 2, 0, 1, 0, 0)))), ErrMalformed, "flow without addresses"},
		{"two protocols", only(nest(1, good), nest(2, ip, nest(2, attr(5, 1, 17, 0, 0, 0), attr(6, 2, 0, 1, 0, 0), attr(6, 3, 0, 2, 0, 0)))), ErrMalformed, "flow without addresses"},
		{"two families", only(nest(1, good), nest(2, ip6, proto)), ErrMalformed, "flow without addresses"},
		{"two families in a tuple", only(nest(1, good), nest(2, ip, nest(1, attr(20, 4, server6.Addr().AsSlice()...)), proto)), ErrMalformed, "flow without addresses"},
		{"source of the other family", only(nest(1, nest(1, attr(20, 3, client6.Addr().AsSlice()...), attr(8, 2, 10, 0, 0, 2)), proto), nest(2, good)), ErrMalformed, "flow without addresses"},
		{"destination of the other family", only(nest(1, nest(1, attr(8, 1, 10, 0, 0, 1), attr(20, 4, server6.Addr().AsSlice()...)), proto), nest(2, good)), ErrMalformed, "flow without addresses"},
		{"one IPv6 address", r.Message(uint16(typeNew), 0, slices.Concat([]byte{unix.AF_INET6, 0, 0, 0}, nest(1, nest(1, attr(20, 3, client6.Addr().AsSlice()...)), proto), nest(2, ip6, proto))), ErrMalformed, "flow without addresses"},
		{"IPv4 address of 3 bytes", only(nest(1, nest(1, attr(7, 1, 10, 0, 0, 0)))), ErrMalformed, "address of 3 bytes, expected 4"},
		{"IPv6 address of 4 bytes", only(nest(1, nest(1, attr(8, 4, 10, 0, 0, 0)))), ErrMalformed, "address of 4 bytes, expected 16"},
		{"protocol of 0 bytes", only(nest(1, ip, nest(2, attr(4, 1)))), ErrMalformed, "protocol of 0 bytes"},
		{"port of 1 byte", only(nest(1, ip, nest(2, attr(5, 2, 1, 0, 0, 0)))), ErrMalformed, "number of 1 bytes, expected 2"},
		{"destination port of 0 bytes", only(nest(1, ip, nest(2, attr(4, 3)))), ErrMalformed, "number of 0 bytes, expected 2"},
		{"zone of a tuple of 1 byte", only(nest(1, good, attr(5, 3, 1, 0, 0, 0))), ErrMalformed, "number of 1 bytes, expected 2"},
		{"attribute too long", and(attr(9, 3, 1)), ErrMalformed, "attribute length 9, 5 bytes left"},
		{"tuple truncated", only(attr(12, 1|0x8000, attr(9, 1, 10, 0, 0, 1)...)), ErrMalformed, "attribute length 9, 8 bytes left"},
		{"addresses truncated", only(nest(1, attr(8, 1|0x8000, attr(5, 1)...))), ErrMalformed, "attribute length 5, 4 bytes left"},
		{"ports truncated", only(nest(1, attr(8, 2|0x8000, attr(5, 1)...))), ErrMalformed, "attribute length 5, 4 bytes left"},
		{"status of 3 bytes", and(attr(7, 3, 1, 2, 3, 0)), ErrMalformed, "number of 3 bytes, expected 4"},
		{"zone of 1 byte", and(attr(5, 18, 1, 0, 0, 0)), ErrMalformed, "number of 1 bytes, expected 2"},
		{"protocol info truncated", and(attr(6, 4|0x8000, 1, 0, 0, 0)), ErrMalformed, "2 bytes, expected an attribute"},
		{"TCP info truncated", and(nest(4, attr(8, 1|0x8000, 9, 0, 1, 0))), ErrMalformed, "attribute length 9, 4 bytes left"},
		{"TCP state of 0 bytes", and(nest(4, nest(1, attr(4, 1)))), ErrMalformed, "state of 0 bytes"},
		{"no ctnetlink", r.Error(unix.EINVAL), ErrUnsupported, "modprobe nf_conntrack_netlink"},
		{"no privilege", r.Error(unix.EPERM), unix.EPERM, "CAP_NET_ADMIN"},
		{"refused", r.Error(unix.EBUSY), unix.EBUSY, "refused by the kernel"},
		{"failed", r.Done(unix.ENOMEM), unix.ENOMEM, "failed in the kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reply := reply{seq: 7, each: func(*Flow) {}}
			done, err := reply.datagram(tt.datagram)
			if done || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, %v, want an error %v that says %q", done, err, tt.want, tt.text)
			}
		})
	}
}

func TestReply(t *testing.T) {
	r := testRequest
	whole := row(r, tcp4)
	and := func(attrs ...[]byte) []byte {
		return r.Message(uint16(typeNew), 0, slices.Concat(tcp4.Body(), slices.Concat(attrs...)))
	}
	changed := func(change func(*Flow)) []Flow {
		f := wantTCP4
		change(&f)
		return []Flow{f}
	}
	icmp := nest(1, nest(1, attr(8, 1, 10, 0, 0, 1), attr(8, 2, 10, 0, 0, 2)),
		nest(2, attr(5, 1, 1, 0, 0, 0), attr(6, 4, 0, 1, 0, 0), attr(5, 5, 8, 0, 0, 0), attr(5, 6, 0, 0, 0, 0)))
	tests := []struct {
		name     string
		datagram []byte
		done     bool
		want     []Flow
	}{
		{"nothing", nil, false, nil},
		{"end", r.Done(0), true, nil},
		{"noop", r.Message(unix.NLMSG_NOOP, 0, nil), false, nil},
		{"unknown family", patch(whole, 16, unix.AF_BRIDGE), false, nil},
		{"TCP", whole, false, []Flow{wantTCP4}},
		{"UDP over IPv6", row(r, udp6), false, []Flow{wantUDP6}},
		{"ICMP", r.Message(uint16(typeNew), 0, append([]byte{unix.AF_INET, 0, 0, 0}, icmp...)), false, nil},
		{"SCTP", row(r, with(tcp4, func(f *conntracktest.Flow) { f.Protocol = unix.IPPROTO_SCTP })), false, nil},
		{"UDP-Lite", row(r, with(udp6, func(f *conntracktest.Flow) { f.Protocol = unix.IPPROTO_UDPLITE })), false, nil},
		{"another flag", patch(whole, 6, 0x22), false, []Flow{wantTCP4}}, // NLM_F_DUMP_FILTERED
		{"unknown attribute", and(attr(9, 99, 1, 2, 3, 4, 5, 0, 0, 0)), false, []Flow{wantTCP4}},
		{"no padding at the end", r.Message(uint16(typeNew), 0, append(tcp4.Body(), attr(5, 99, 1)...)), false, []Flow{wantTCP4}},
		{"unknown state", and(nest(4, nest(1, attr(5, 1, 200, 0, 0, 0)))), false, changed(func(f *Flow) { f.State = 200 })},
		{"no TCP state", and(nest(4, nest(1))), false, changed(func(f *Flow) { f.State = None })},
		{"longer status", and(attr(12, 3, 0, 0, 0, 0x10, 1, 2, 3, 4)), false, changed(func(f *Flow) { f.Status = SrcNAT })},
		{
			"zone", row(r, with(tcp4, func(f *conntracktest.Flow) { f.Zone = 0x1234 })), false,
			changed(func(f *Flow) { f.Zone = 0x1234 }),
		},
		{
			"zone of one direction", row(r, with(tcp4, func(f *conntracktest.Flow) { f.Original.Zone = 5 })), false,
			[]Flow{wantTCP4},
		},
		{
			"zone of the other direction", row(r, with(tcp4, func(f *conntracktest.Flow) { f.Reply.Zone = 6 })), false,
			changed(func(f *Flow) { f.Zone = 6 }),
		},
		{"two and the end", slices.Concat(row(r, udp6), whole, r.Done(0)), true, []Flow{wantUDP6, wantTCP4}},
		{
			"nothing of one flow in the next", slices.Concat(row(r, with(tcp4, func(f *conntracktest.Flow) { f.Zone = 9 })), row(r, udp6)), false,
			append(changed(func(f *Flow) { f.Zone = 9 }), wantUDP6),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []Flow
			reply := reply{seq: 7, each: func(f *Flow) { got = append(got, *f) }}
			done, err := reply.datagram(tt.datagram)
			if done != tt.done || err != nil {
				t.Errorf("got %v, %v, want %v", done, err, tt.done)
			}
			if diff := cmp.Diff(tt.want, got, compareAddrs); diff != "" {
				t.Errorf("flows (-want +got):\n%s", diff)
			}
		})
	}
}

// TestReplyAllocates checks that a reply allocates nothing for a flow.
func TestReplyAllocates(t *testing.T) {
	datagram := slices.Concat(slices.Repeat(row(testRequest, udp6), 50), slices.Repeat(row(testRequest, tcp4), 50))
	flows := 0
	reply := reply{seq: 7, each: func(*Flow) { flows++ }}
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := reply.datagram(datagram); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 || flows != 1100 {
		t.Errorf("%v allocations for %d flows, want 0 for 1100", allocs, flows)
	}
}

// FuzzFlow decodes any bytes. The decoder must not panic or return an impossible flow.
func FuzzFlow(f *testing.F) {
	r := testRequest
	f.Add([]byte{})
	f.Add(row(r, tcp4))
	f.Add(slices.Concat(row(r, udp6), row(r, with(tcp4, func(f *conntracktest.Flow) { f.Reply.Zone = 1 })), r.Done(0)))
	f.Add(r.Error(unix.EINVAL))
	f.Fuzz(func(t *testing.T, b []byte) {
		flows := 0
		reply := reply{seq: 7, each: func(f *Flow) {
			flows++
			for _, end := range []netip.AddrPort{f.Original.Source, f.Original.Destination, f.Reply.Source, f.Reply.Destination} {
				if !end.IsValid() || end.Addr().Zone() != "" {
					t.Errorf("impossible flow %+v", f)
				}
			}
			if f.Protocol != TCP && f.Protocol != UDP {
				t.Errorf("impossible flow %+v", f)
			}
		}}
		done, err := reply.datagram(b)
		if done && err != nil {
			t.Errorf("done with the error %v", err)
		}
		if flows*132 > len(b) {
			t.Errorf("%d flows out of %d bytes", flows, len(b))
		}
	})
}
