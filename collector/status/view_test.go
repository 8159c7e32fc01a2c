package status

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/advice"
)

// TestParseView checks which view a request gets.
func TestParseView(t *testing.T) {
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	one := netip.MustParseAddrPort("10.0.0.2:443")
	tests := []struct {
		query, accept string
		want          View
		err           string
	}{
		{"?destination=10.0.0.", "", View{}, `destination="10.0.0." is not valid: it must be ADDRESS or ADDRESS:PORT, such as 10.0.0.2, 10.0.0.2:443 or [2001:db8::2]:443`},
		{"?destination=2001:db8::2:443x", "", View{}, "is not valid: it must be ADDRESS or ADDRESS:PORT"},
		{"?destination=example.com:443", "", View{}, "is not valid: it must be ADDRESS or ADDRESS:PORT"},
		{"?destination=10.0.0.2:70000", "", View{}, "is not valid: it must be ADDRESS or ADDRESS:PORT"},
		{"?destination=%1b[2J%0a", "", View{}, `destination="\x1b[2J\n" is not valid`},
		{"?format=xml", "", View{}, `format="xml" is not valid: it must be html, text or json`},
		{"?destination=%zz", "", View{}, "the query of the address is not valid"},

		{"?destination=10.0.0.2&what-if=load", "", View{}, `what-if="load" is not valid: it must be one or more of load:N (times the load of now, such as 2 or 0.5, up to 1000), address:N`},
		{"?destination=10.0.0.2&what-if=load:0", "", View{}, "is not valid: it must be one or more of"},
		{"?destination=10.0.0.2&what-if=load:NaN", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=load:1001", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=load:2,load:3", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=load:2,", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=address:0", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=address:1e3", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=reuse:1", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=keep-alive:1", "", View{}, "is not valid"},
		{"?destination=10.0.0.2&what-if=%1b[2J", "", View{}, `what-if="\x1b[2J" is not valid`},
		{"?what-if=load:2", "", View{}, `what-if="load:2" is not valid: it needs destination=ADDRESS:PORT`},

		{"?port=70000", "", View{}, `port="70000" is not valid: it must be a port from 1 to 65535`},
		{"?port=80&destination=10.0.0.2", "", View{}, "is not valid"},
		{"?port=40003&format=json", "", View{Format: JSON, Port: 40003}, ""},

		{"", "", View{Format: Text}, ""},
		{"", "*/*", View{Format: Text}, ""},
		{"", browser, View{Format: HTML}, ""},
		{"", "application/json", View{Format: JSON}, ""},
		{"", "Application/JSON; charset=utf-8", View{Format: JSON}, ""},
		{"", "text/html;q=0.5, application/json", View{Format: JSON}, ""},
		{"", "text/html;q=0", View{Format: Text}, ""},
		{"", "text/html;q=x, ;;;", View{Format: Text}, ""},
		{"?format=json", browser, View{Format: JSON}, ""},
		{"?format=text", browser, View{Format: Text}, ""},
		{"?format=html", "", View{Format: HTML}, ""},
		{"?pause", browser, View{Format: HTML, Paused: true}, ""},
		{"?destination=", "", View{Format: Text}, ""},
		{"?destination=10.0.0.2:443", browser, View{Format: HTML, Destination: one}, ""},
		{"?destination=10.0.0.2:443&what-if=", "", View{Format: Text, Destination: one}, ""},
		{"?what-if=reuse&destination=10.0.0.2:443", "", View{Format: Text, Destination: one, WhatIf: advice.Change{Reuse: true}}, ""},
		{
			"?destination=10.0.0.2:443&what-if=keep-alive:10,reuse,address:1,load:2.5", "",
			View{Format: Text, Destination: one, WhatIf: advice.Change{Load: 2.5, Addresses: 1, Reuse: true, KeepAlive: 10}}, "",
		},
		{"?destination=10.0.0.2", "", View{Format: Text, Destination: netip.AddrPortFrom(one.Addr(), 0)}, ""},
		{"?destination=::ffff:10.0.0.2", "", View{Format: Text, Destination: netip.AddrPortFrom(one.Addr(), 0)}, ""},
		{"?destination=fe80::2%252", "", View{Format: Text, Destination: netip.AddrPortFrom(netip.MustParseAddr("fe80::2%2"), 0)}, ""},
		{"?destination=%5B::ffff:10.0.0.2%5D:443", "", View{Format: Text, Destination: one}, ""},
		{"?destination=[2001:db8::2]:443", "", View{Format: Text, Destination: netip.MustParseAddrPort("[2001:db8::2]:443")}, ""},
		{"?destination=%5Bfe80%3A%3A2%252%5D:443", "", View{Format: Text, Destination: netip.MustParseAddrPort("[fe80::2%2]:443")}, ""},
	}
	for _, tt := range tests {
		r := httptest.NewRequest("GET", "/"+tt.query, nil)
		r.Header.Set("Accept", tt.accept)
		got, err := ParseView(r)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.query, err, tt.err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s, Accept %q: %+v, %v, want %+v", tt.query, tt.accept, got, err, tt.want)
		}
	}
}

// TestURL checks that the address of a view leads to it.
func TestURL(t *testing.T) {
	for _, v := range []View{
		{Format: HTML},
		{Format: JSON},
		{Format: HTML, Paused: true},
		{Format: Text, Destination: netip.MustParseAddrPort("10.0.0.2:443")},
		{Format: HTML, Destination: netip.MustParseAddrPort("[fe80::2%a&b]:443"), Paused: true},
		{Format: HTML, Destination: netip.MustParseAddrPort("[2001:db8::2]:0")},
		{Format: Text, Destination: netip.MustParseAddrPort("10.0.0.2:443"), WhatIf: advice.Change{Load: 0.001, Addresses: 1000, Reuse: true, KeepAlive: 1000000}},
	} {
		r := httptest.NewRequest("GET", v.URL(), nil)
		r.Header.Set("Accept", "text/html")
		if got, err := ParseView(r); err != nil || got != v {
			t.Errorf("%s leads to %+v, %v, want %+v", v.URL(), got, err, v)
		}
	}
	v := View{Format: HTML, Destination: netip.MustParseAddrPort("10.0.0.2:443"), Paused: true}
	if got := v.Toggled() + " " + v.All() + " " + v.As(Text); got != "/?destination=10.0.0.2%3A443 /?pause /?destination=10.0.0.2%3A443&format=text" {
		t.Error(got)
	}
}
