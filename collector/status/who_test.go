package status

import (
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// TestWho checks who is named beside a pool, in which order, and with what share.
func TestWho(t *testing.T) {
	group := func(path string) cgroup.Group { return cgroup.Group{Path: path} }
	closes := func(path string, recent uint64) *scan.ClosedPool {
		return &scan.ClosedPool{Cgroup: group(path), Closes: recent + 1000, Recent: recent, Last: scan.Process{Command: "curl", PID: 7}}
	}
	fails := func(path string, n uint64) *scan.FailedPool {
		return &scan.FailedPool{Cgroup: group(path), Failures: n, Last: scan.Process{Command: "haproxy", PID: 8}}
	}
	owns := func(path string, n int) scan.Owner { return scan.Owner{Group: group(path), Ports: n} }
	waiting := connections("10.0.0.1", "10.0.0.2:80", map[tcpstate.State]int{tcpstate.TimeWait: 3237, tcpstate.Established: 55})
	open := connections("10.0.0.1", "10.0.0.2:80", map[tcpstate.State]int{tcpstate.TimeWait: 10, tcpstate.Established: 990})
	counted := &scan.Trace{ClosesCounted: true, Window: 61 * time.Second}
	reused := waiting
	reused.Reusable = 3000
	bound, waitingBound := open, waiting
	for _, d := range []*pool.Destination{&bound, &waitingBound} {
		d.BoundByOthers, d.Utilization = 20000, float64(d.Held+20000)/28220
	}
	overtaken := connections("10.0.0.1", "10.0.0.2:80", map[tcpstate.State]int{tcpstate.TimeWait: 600, tcpstate.Established: 400})
	overtaken.Reusable = 500
	for _, tt := range []struct {
		name           string
		pool           pool.Destination
		owners         []scan.Owner
		traced         traced
		of             *scan.Trace
		row, sentences []string
		culprit        string
	}{
		{"not traced", waiting, []scan.Owner{owns("/proxy", 55)}, traced{}, nil, []string{"/proxy (55)"}, []string{
			"Held by /proxy (55): these have 55 of 3292 ports. The others are of connections that ended, which no control group has any more: --trace tells who closes them.",
		}, ""},
		{"not traced, no owner", waiting, nil, traced{}, nil, nil, []string{
			"Connections that this host closed first have 3237 of 3292 ports. No process and no control group has them any more: --trace tells who closes them.",
		}, ""},
		{"closes not counted", waiting, nil, traced{}, &scan.Trace{}, nil, []string{
			"Connections that this host closed first have 3237 of 3292 ports. No process and no control group has them any more: who closed them is not counted now.",
		}, ""},
		{"the job, not the proxy", waiting, []scan.Owner{owns("/proxy", 55)}, traced{closers: []*scan.ClosedPool{closes("/job", 3150), closes("/proxy", 87)}, failing: []*scan.FailedPool{fails("/proxy", 12)}, failures: 12}, counted,
			[]string{"closed by /job (97%), /proxy (2%)", "held by /proxy (55)"}, []string{
				"Closed first in the last 61 s by /job (97%, last curl with pid 7), /proxy (2%, last curl with pid 7).",
				"Held by /proxy (55).",
				"Failed connects are of /proxy (12, last haproxy with pid 8).",
				"/job fills the pool, so that /proxy cannot connect: what helps has to change the first.",
			}, "/job closed 97% of its connections"},
		{"most is not known", waiting, nil, traced{closers: []*scan.ClosedPool{closes("/job", 300)}}, counted, []string{"who closed 90% is not known"}, []string{
			"Who closed 90% of its connections first in the last 61 s is not known. The others were closed by /job (9%, last curl with pid 7).",
		}, ""},
		{"nothing is known", waiting, nil, traced{}, counted, nil, []string{
			"Who closed its connections first is not known: that was before the exporter started, or their closes are not attributed.",
		}, ""},
		{"many", waiting, nil, traced{closers: []*scan.ClosedPool{closes("/a", 1000), closes("/b", 1000), closes("/c", 1000), closes("/d", 237)}}, counted, []string{"closed by /a (30%), /b (30%), /c (30%) and 1 other"}, []string{
			"Closed first in the last 61 s by /a (30%, last curl with pid 7), /b (30%, last curl with pid 7), /c (30%, last curl with pid 7) and 1 other.",
		}, ""},
		{"reused within a second", reused, nil, traced{closers: []*scan.ClosedPool{closes("/job", 90000)}}, counted, []string{"closed by /job (100%)"}, []string{
			"Closed first in the last 61 s by /job (100%, last curl with pid 7).",
		}, "/job closed 100% of its connections"},
		{"open connections", open, []scan.Owner{owns("/proxy", 980), owns("/job", 10)}, traced{closers: []*scan.ClosedPool{closes("/job", 10)}, failing: []*scan.FailedPool{fails("/proxy", 3)}, failures: 3}, counted,
			[]string{"/proxy (980)", "/job (10)"}, []string{"Held by /proxy (980), /job (10).", "Failed connects are of /proxy (3, last haproxy with pid 8)."}, "/proxy holds 87% of those in use"},
		{"others have bound most", bound, []scan.Owner{owns("/proxy", 980)}, traced{failing: []*scan.FailedPool{fails("/job", 3)}, failures: 3}, counted,
			[]string{"/proxy (980)"}, []string{"Held by /proxy (980).", "Failed connects are of /job (3, last haproxy with pid 8)."}, "other clients have bound 95% of those in use"},
		{"others have bound most, and closes", waitingBound, nil, traced{closers: []*scan.ClosedPool{closes("/job", 3237)}, failing: []*scan.FailedPool{fails("/proxy", 3)}, failures: 3}, counted,
			[]string{"closed by /job (100%)"}, []string{
				"Closed first in the last 61 s by /job (100%, last curl with pid 7).", "Failed connects are of /proxy (3, last haproxy with pid 8).",
			}, "other clients have bound 85% of those in use"},
		{"open connections hold what connect() cannot take over", overtaken, []scan.Owner{owns("/proxy", 390)}, traced{closers: []*scan.ClosedPool{closes("/job", 6000)}}, counted,
			[]string{"closed by /job (100%)", "held by /proxy (390)"}, []string{"Closed first in the last 61 s by /job (100%, last curl with pid 7).", "Held by /proxy (390)."}, "/proxy holds 62% of those in use"},
		{"in the root", open, []scan.Owner{owns("/", 980)}, traced{}, counted, []string{"/ (980)"}, []string{"Held by / (980)."}, ""},
		{"only failures are known", connections("10.0.0.1", "10.0.0.2:80", map[tcpstate.State]int{tcpstate.Established: 2}), nil, traced{failing: []*scan.FailedPool{fails("/proxy", 3)}, failures: 3}, counted,
			nil, []string{"Failed connects are of /proxy (3, last haproxy with pid 8)."}, "connects of /proxy failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWho(&tt.pool, tt.owners, tt.traced, tt.of, visible)
			if got, want := strings.Join(w.InRow, "\n"), strings.Join(tt.row, "\n"); got != want {
				t.Errorf("row:\n%s\nwant\n%s", got, want)
			}
			if got, want := strings.Join(w.Sentences, "\n"), strings.Join(tt.sentences, "\n"); got != want {
				t.Errorf("sentences:\n%s\nwant\n%s", got, want)
			}
			if w.culprit != tt.culprit {
				t.Errorf("culprit %q, want %q", w.culprit, tt.culprit)
			}
		})
	}
}
