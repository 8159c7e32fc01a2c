package status

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// remembered returns what is remembered of the 20 minutes before a snapshot. Its first destination became full in that time, the second rises
// and falls each three minutes, and the others go up and down a little. For nearly two minutes, nobody scanned.
func remembered(s scan.Snapshot) *history.History {
	const before = 80
	scale := func(destination, step int) float64 {
		switch t := float64(step) / before; destination {
		case 0:
			return math.Min(1, 3.24*t*t)
		case 1:
			return 0.3 + 0.7*float64((step+3)%12)/11
		default:
			return 0.9 + 0.1*math.Sin(float64(step+3*destination)/4)
		}
	}
	h := &history.History{}
	for step := range before {
		if step >= 60 && step < 67 {
			continue
		}
		then := s
		then.Time = s.Time.Add(time.Duration(step-before) * history.Step)
		then.Namespaces = slices.Clone(s.Namespaces)
		for i := range then.Namespaces {
			r := &then.Namespaces[i].TCP.Report
			r.Destinations = slices.Clone(r.Destinations)
			for j := range r.Destinations {
				d, by := &r.Destinations[j], scale(j, step)
				for k := range d.Ports {
					d.Ports[k] = int(float64(d.Ports[k]) * by)
				}
				d.CloseRate *= by
				d.Held, d.Reusable = int(float64(d.Held)*by), int(float64(d.Reusable)*by)
				d.Utilization, d.PossibleUtilization = d.Utilization*by, d.PossibleUtilization*by
				if by < 1 {
					d.Exhaustion, d.SureExhaustion = math.Inf(1), math.Inf(1)
				}
			}
		}
		h.Record(&then)
	}
	h.Record(&s)
	return h
}

// pastOf returns the past of the only destination of scans, of which the last is at the time of all snapshots. Where one is nil, nobody scanned.
func pastOf(t *testing.T, interval time.Duration, used ...func(*scan.Namespace)) *past {
	t.Helper()
	h := &history.History{}
	var last scan.Snapshot
	for i, change := range used {
		if change == nil {
			continue
		}
		last = hostOf(defaults())
		last.Time = at.Add(time.Duration(i-len(used)+1) * interval)
		change(&last.Namespaces[0])
		h.Record(&last)
	}
	info := testInfo
	info.History = h
	p := newPage(&last, info, View{}, visible)
	if len(p.Destinations) != 1 || p.Destinations[0].past == nil {
		t.Fatalf("destinations %+v", p.Destinations)
	}
	return p.Destinations[0].past
}

// uses is a namespace with a destination that uses a share of the ports, and possibly more.
func uses(share, possible float64) func(*scan.Namespace) {
	return func(n *scan.Namespace) {
		d := connections("10.0.0.1", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.Established: int(share * 28220)})
		d.MayBeBound = int((possible - share) * 28220)
		d.BoundByOthers, d.Utilization, d.PossibleUtilization = 0, share, possible
		n.TCP.Report.Destinations, n.TCP.Report.MaxUtilization = []pool.Destination{d}, share
	}
}

// fails is a namespace that could not be read.
func fails(n *scan.Namespace) {
	n.TCP = scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("no")}}
}

// TestPast checks what is drawn of scans at all intervals: what was read, until the next reading if that is near, and nothing else.
func TestPast(t *testing.T) {
	low, half, full := uses(0.1, 0.1), uses(0.5, 0.5), uses(1, 1)
	for _, tt := range []struct {
		name     string
		interval time.Duration
		scans    []func(*scan.Namespace)
		text     string // its end, without what was before the first scan
		digits   string
		area     string
		ports    string
	}{
		{"each second", time.Second, []func(*scan.Namespace){low, full, low}, "█", "9", "M59 100V0H60V100Z", "28220 ports"},
		{"each step", 15 * time.Second, []func(*scan.Namespace){low, low, half, half, full, full}, "▁▅█", "159", "M54 100V90H56V50H58V0H60V100Z", "2822-28220 ports"},
		{"each minute", time.Minute, []func(*scan.Namespace){low, half, full}, "▁▁▅▅█", "11559", "M51 100V90H55V50H59V0H60V100Z", "2822-28220 ports"},
		{"each two minutes", 2 * time.Minute, []func(*scan.Namespace){low, full}, "▁···█", "1---9", "M51 100V90H52V100ZM59 100V0H60V100Z", "2822-28220 ports"},
		{"a scan is lost", 30 * time.Second, []func(*scan.Namespace){low, nil, low}, "▁▁▁", "111", "M55 100V90H60V100Z", "2822 ports"},
		{"four are lost", 30 * time.Second, []func(*scan.Namespace){low, nil, nil, nil, nil, low}, "▁····▁", "1----1", "M49 100V90H50V100ZM59 100V90H60V100Z", "2822 ports"},
		{"two fail", 30 * time.Second, []func(*scan.Namespace){full, fails, fails, full}, "██·█", "99-9", "M53 100V0H55V100ZM59 100V0H60V100Z", "28220 ports"},
		{"doubt", 30 * time.Second, []func(*scan.Namespace){low, uses(0.2, 0.9)}, "▁█", "19", "M57 100V90H59V80H60V100Z", "2822-5644 ports or more"},
	} {
		p := pastOf(t, tt.interval, tt.scans...)
		end := func(drawn string) string {
			runes := []rune(drawn)
			if len(runes) != 30 {
				t.Errorf("%s: %d signs", tt.name, len(runes))
			}
			return strings.TrimLeft(strings.TrimLeft(drawn, "·"), "-")
		}
		if got := end(p.draw(blocks)); got != tt.text {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.text)
		}
		if got := end(p.draw(digits)); got != tt.digits {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.digits)
		}
		if got := p.Area(); got != tt.area {
			t.Errorf("%s: area %s, want %s", tt.name, got, tt.area)
		}
		if p.Ports != tt.ports {
			t.Errorf("%s: %s, want %s", tt.name, p.Ports, tt.ports)
		}
	}
	doubt := pastOf(t, 30*time.Second, low, uses(0.2, 0.9))
	if got, want := doubt.MostArea(), "M57 100V90H59V10H60V100Z"; got != want {
		t.Errorf("doubt: at most %s, want %s", got, want)
	}
	if got, want := doubt.Description(), "Ports in use: not read 14 min ago, not read 10 min ago, not read 5 min ago, 20-90% now; the most was 20-90%; not read for 14 min"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestPastSince checks the words about since when a pool is in danger, in the headline of the host and of its destination, and in JSON. What
// is calm has none.
func TestPastSince(t *testing.T) {
	low, half, full := uses(0.1, 0.1), uses(0.6, 0.6), uses(1, 1)
	many := slices.Repeat([]func(*scan.Namespace){full}, 10)
	for _, tt := range []struct {
		name     string
		interval time.Duration
		scans    []func(*scan.Namespace)
		want     string
	}{
		{"calm", time.Minute, []func(*scan.Namespace){low, low}, ""},
		{"it rose", time.Minute, []func(*scan.Namespace){low, low, full, full}, "exhausted since 02:59 UTC"},
		{"it rose, in danger before", time.Minute, []func(*scan.Namespace){low, half, half, half, full, full}, "exhausted since 02:59 UTC, in danger since 02:56 UTC"},
		{"start", time.Minute, []func(*scan.Namespace){full, full}, "exhausted since at least 02:59 UTC (start of the exporter)"},
		{"nobody looked", 5 * time.Minute, []func(*scan.Namespace){low, full}, "exhausted since at least 03:00 UTC"},
		{"nobody looks any more", 5 * time.Minute, []func(*scan.Namespace){low, full, full}, "exhausted since at least 02:55 UTC (with gaps)"},
		{"it could not be read", time.Minute, []func(*scan.Namespace){low, full, fails, fails, full}, "exhausted since 02:57 UTC (with gaps)"},
		{"longer than 15 minutes", 2 * time.Minute, append([]func(*scan.Namespace){low}, many...), "exhausted since 02:42 UTC"},
		{"yesterday", 14 * time.Minute, append(append([]func(*scan.Namespace){low}, slices.Repeat(many, 6)...), many...), "exhausted since at least 2026-11-20 10:54 UTC (with gaps)"},
	} {
		p := pastOf(t, tt.interval, tt.scans...)
		if p.Since != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, p.Since, tt.want)
		}
	}
}

// TestPastShown draws pasts in all formats: of all kinds of pools, with what the program draws of characters where it may, and nothing where nothing
// is remembered.
func TestPastShown(t *testing.T) {
	s := trouble()
	html := drawPast(t, s, View{Format: HTML})
	for section, rows := range map[string]int{"destinations": 6, "snat": 5, "sources": 1, "udp": 5} {
		_, of, _ := strings.Cut(html, `<section aria-labelledby="`+section+`">`)
		of, _, _ = strings.Cut(of, "</section>")
		if got := strings.Count(of, `<svg class="spark"`); got != rows {
			t.Errorf("%s: %d rows with a past, want %d", section, got, rows)
		}
	}
	for _, columns := range []int{40, 80, 120} {
		for _, ascii := range []bool{true, false} {
			text := drawPast(t, s, View{Format: Text, Columns: columns, ASCII: ascii})
			for line := range strings.Lines(text) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); strings.HasPrefix(line, "    ") && strings.ContainsAny(line, "▁█") && n > columns {
					t.Errorf("%d columns: %q has %d", columns, line, n)
				}
			}
			if got := strings.IndexFunc(text, func(r rune) bool { return r > '~' }) < 0; got != ascii {
				t.Errorf("ASCII %v: %v", got, ascii)
			}
			if want := "exhausted since 02:51 UTC"; !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
				t.Errorf("%d columns: no %q", columns, want)
			}
		}
	}
	if got := drawPast(t, s, View{Format: Text, Destination: netip.MustParseAddrPort("10.0.0.9:8080")}); !strings.Contains(strings.Join(strings.Fields(got), " "), " failed. The pool has been exhausted since 02:51 UTC, in danger since 02:45 UTC. See ") {
		t.Errorf("one destination:\n%s", got[:min(len(got), 300)])
	}
	var d struct {
		Destinations, Sources, UDP, SNAT []struct {
			History []struct {
				Time  time.Time
				Ports int     `json:"used_ports"`
				Ratio float64 `json:"utilization_ratio"`
			}
			Since time.Time `json:"level_since"`
		}
	}
	if err := json.Unmarshal([]byte(drawPast(t, s, View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.SNAT) == 0 || len(d.UDP) == 0 || len(d.Sources) == 0 {
		t.Fatalf("%+v", d)
	}
	for _, of := range slices.Concat(d.Destinations, d.Sources, d.UDP, d.SNAT) {
		// 60 steps less the 7 of the gap; the newest begins at most 15 s before the snapshot.
		if n := len(of.History); n != 53 || at.Sub(of.History[n-1].Time) >= 15*time.Second || at.Sub(of.History[0].Time) > 15*time.Minute {
			t.Errorf("%d readings: %+v", n, of)
		}
	}
	if of := d.Destinations[0]; of.History[52].Ports != 28220 || of.History[52].Ratio != 1 || of.Since.UTC().Format("15:04") != "02:51" {
		t.Errorf("%+v", of)
	}
	for _, f := range []Format{HTML, Text, JSON} {
		if got := draw(t, s, View{Format: f}); strings.Contains(got, "ast 15 minutes") || strings.Contains(got, `class="spark"`) || strings.Contains(got, `"history"`) {
			t.Errorf("%s has a past that nobody remembers", f)
		}
	}
}
