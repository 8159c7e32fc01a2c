package status

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// steadyHost is a host that has closed 50 connections per second to a destination for a minute.
func steadyHost() scan.Snapshot {
	r := defaults()
	d := connections("10.0.0.1", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.TimeWait: 3100, tcpstate.Established: 200})
	d.CloseRate, d.PeakCloseRate, d.Timestamps = 50, 52, pool.Yes
	r.Destinations, r.MaxUtilization = []pool.Destination{d}, d.Utilization
	return hostOf(r)
}

// TestWhatIf checks the table of what happens if something changes: each row leads to its change together with those that were
// asked for, and the row that was asked for says why.
func TestWhatIf(t *testing.T) {
	v := View{Format: Text, Destination: netip.MustParseAddrPort("10.0.0.2:443"), Columns: 80}
	got := draw(t, steadyHost(), v)
	const table = `
What if: 10.0.0.1 to 10.0.0.2:443
WHAT IF                   USED   CLOSES/S  CEILING/S  FIRST LIMIT
as it is now               12%       50.0        450  ports at x 7.75
load x 2                21-27%   91.1-110        447  ports at x 7.75
load x 5                53-65%    228-274        437  ports at x 7.75
1 address more            5-7%  45.5-54.8        903  ports at x 15
reuse on                  1-2%  45.5-54.8      27900  ports at x 99
keep-alive 10 requests    2-3%    4.6-5.5        450  ports at x 49
`
	if !strings.Contains(got, table) {
		t.Errorf("got\n%s\nwant\n%s", got, table)
	}
	v.WhatIf = advice.Change{Load: 5, Reuse: true}
	got = draw(t, steadyHost(), v)
	for _, want := range []string{
		"\nload x 5, reuse on ", "\nload x 2, reuse on ", "\nload x 5, 1 address more, reuse on\n", "\nload x 5, reuse on, keep-alive 10 requests\n",
		"\nWhat if: load x 5, reuse on\n  The ports suffice.\n", "holds its port for 1 s instead of",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant %q", got, want)
		}
	}
	for line := range strings.Lines(got) {
		if len(line) > 81 && !strings.Contains(line, "net.ipv4.") {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}

	v.Format = HTML
	got = draw(t, steadyHost(), v)
	var links []string
	for _, m := range regexp.MustCompile(`<a href="/\?destination=10\.0\.0\.2%3A443(?:&amp;what-if=([^"&]*))?">`).FindAllStringSubmatch(got, -1) {
		links = append(links, m[1])
	}
	if want := "  load:5,reuse load:2,reuse load:5,address:1,reuse load:5,reuse,keep-alive:10"; strings.Join(links, " ") != want {
		t.Errorf("links to %q, want %q", strings.Join(links, " "), want)
	}

	v.Format = JSON
	var d struct {
		Destinations []struct {
			WhatIf []documentWhatIf `json:"what_if"`
		}
	}
	if err := json.Unmarshal([]byte(draw(t, steadyHost(), v)), &d); err != nil {
		t.Fatal(err)
	}
	if all := d.Destinations[0].WhatIf; len(all) != 4 || all[0].Change != "load:5,reuse" || *all[0].Used.Most > 0.1 || all[0].Level != "calm" || len(all[0].Sentences) == 0 {
		t.Errorf("%+v", all)
	}
}

// TestNoWhatIf checks views that have none, and says so if it was asked for.
func TestNoWhatIf(t *testing.T) {
	for _, format := range []Format{HTML, Text, JSON} {
		if got := draw(t, trouble(), View{Format: format}); strings.Contains(got, "What if") || strings.Contains(got, "what_if") {
			t.Errorf("%s: a page of all destinations predicts", format)
		}
	}
	v := View{Format: Text, Destination: netip.MustParseAddrPort("10.96.0.10:53"), WhatIf: advice.Change{Load: 2}}
	if got := draw(t, trouble(), v); !strings.Contains(got, "What if is known of TCP destinations of this host that are listed") {
		t.Errorf("of source NAT:\n%s", got)
	}
	many := hostOf(defaults())
	r := &many.Namespaces[0].TCP.Report
	for i := range 12 {
		d := connections("10.0.0.1", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.Established: 200})
		d.Address = netip.AddrPortFrom(d.Address.Addr(), uint16(443+i))
		r.Destinations = append(r.Destinations, d)
	}
	v = View{Format: Text, Destination: netip.MustParseAddrPort("10.0.0.2:0")}
	if got := draw(t, many, v); strings.Count(got, "What if: ") != maxWhatIf || !strings.Contains(got, "2 more destinations have such a table in the JSON only.") {
		t.Errorf("many:\n%s", got)
	}
}
