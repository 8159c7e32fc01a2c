package pool

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestDenies(t *testing.T) {
	sources := []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
	}
	tests := []struct {
		listen string
		v6only bool
		want   string // for each of sources, whether it is denied
	}{
		{"10.0.0.1", false, "[true false false false]"},
		{"2001:db8::2", false, "[false false false true]"},
		{"0.0.0.0", false, "[true true false false]"},
		{"::", false, "[true true true true]"},
		{"::", true, "[false false true true]"},
	}
	for _, tt := range tests {
		listener := Listener{Local: netip.AddrPortFrom(netip.MustParseAddr(tt.listen), 40000), V6Only: tt.v6only}
		var got []bool
		for _, s := range sources {
			got = append(got, listener.denies(s))
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("listener on %s, v6only %v: got %v, want %v", tt.listen, tt.v6only, got, tt.want)
		}
	}
}

func TestStateString(t *testing.T) {
	want := "established syn_sent syn_recv fin_wait1 fin_wait2 time_wait close_wait last_ack closing unknown"
	var got []string
	for _, s := range append(States[:], 7) {
		got = append(got, s.String())
	}
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
