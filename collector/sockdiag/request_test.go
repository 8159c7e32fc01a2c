//go:build linux

package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"ephemeral_port_exporter/collector/internal/tcpstate"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// concat joins bytes and numbers, in native byte order.
func concat(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case uint16:
			b = binary.NativeEndian.AppendUint16(b, p)
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, p)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

func TestRequest(t *testing.T) {
	req := request{states: bit(tcpstate.TimeWait) | bit(tcpstate.Established), low: 32768, high: 60999}
	filter := concat(
		uint16(20), uint16(1), // struct nlattr: length, INET_DIAG_REQ_BYTECODE
		2, 8, uint16(20), // S_GE: go on at the next comparison, or 4 past the end
		0, 0, uint16(32768),
		3, 8, uint16(12), // S_LE: end, or 4 past the end
		0, 0, uint16(60999),
	)
	zeroes := make([]byte, 48)
	local4, remote4 := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:443")
	local6, remote6 := netip.MustParseAddrPort("[fe80::1]:40000"), netip.MustParseAddrPort("[fe80::2]:443")
	ports := []byte{40000 >> 8, 40000 & 0xff, 443 >> 8, 443 & 0xff}
	cookie := concat(^uint32(0), ^uint32(0))
	tests := []struct {
		name      string
		got, want []byte
	}{
		{"getsock", req.getSock(), concat(0, 0, 0, 0, zeroes, uint32(1<<6|1<<1), uint32(0), filter)},
		{"udp", request{states: bit(tcpstate.Close), low: 1, high: 65535, udp: true}.byFamily(unix.AF_INET)[:8], concat(2, 17, 0, 0, uint32(1<<7))},
		{"one socket", oneSocket(local4, remote4, 0),
			concat(2, 6, 2, 0, ^uint32(0), ports, []byte{10, 0, 0, 1}, zeroes[:12], []byte{10, 0, 0, 2}, zeroes[:12], uint32(0), cookie)},
		{"one socket on an interface", oneSocket(local6, remote6, 7),
			concat(10, 6, 2, 0, ^uint32(0), ports, local6.Addr().AsSlice(), remote6.Addr().AsSlice(), uint32(7), cookie)},
		{"by family", req.byFamily(unix.AF_INET6), concat(10, 6, 0, 0, uint32(1<<6|1<<1), zeroes, filter)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}
