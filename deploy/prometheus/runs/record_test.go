//go:build linux && record

// The tests of package runs record what an exporter says of real connections, for the tests of the alerts.
//
//	go test -tags record -timeout 1h -count 1 ./deploy/prometheus/runs -run TestRecord/tuned
package runs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v2"

	dto "github.com/prometheus/client_model/go"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

const (
	exporterProgram = "ephemeral_port_exporter"

	tick     = 100 * time.Millisecond // of the workloads
	interval = 5 * time.Second        // of the scrapes
	timeout  = 4 * time.Second        // of a scrape
)

func TestMain(m *testing.M) {
	os.Exit(netnstest.Main(m, netnstest.Program{
		Name: exporterProgram, Args: []string{"build", "ephemeral_port_exporter/cmd/ephemeral_port_exporter"},
	}))
}

// TestRecord records all runs of a corpus at the same time, each in a network namespace of its own.
func TestRecord(t *testing.T) {
	for corpus, runs := range corpora {
		t.Run(corpus, func(t *testing.T) {
			for _, r := range runs {
				t.Run(r.Name, func(t *testing.T) {
					t.Parallel()
					r.record(t, filepath.Join("testdata", corpus))
				})
			}
		})
	}
}

// record records a run.
func (r *run) record(t *testing.T, dir string) {
	netnstest.New(t)
	r.length = cmp.Or(r.length, usualLength)
	if r.low != 0 {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", r.low, r.high))
	}
	to := r.to
	if to == "" {
		to = destination
	}
	w := newWorkload(t, r.Name, to)
	defer w.close()
	e := &exporter{t: t}
	e.start()
	defer e.stop()

	scrapers := []*scraper{newScraper(e.dial)}
	if r.twice {
		scrapers = append(scrapers, newScraper(e.dial))
	}
	begin := time.Now()
	done := make(chan struct{})
	for i, s := range scrapers {
		go func() {
			s.run(begin.Add(time.Duration(i)*26*interval/50), r.length)
			done <- struct{}{}
		}()
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for running := len(scrapers); running > 0; {
		select {
		case <-done:
			running--
		case reply := <-e.dials:
			// The exporter may be stopped or gone: a scrape that fails is part of the record.
			conn, err := net.DialTimeout("tcp", "127.0.0.1:10149", time.Second)
			reply <- dialed{conn, err}
		case <-ticker.C:
			w.now = time.Since(begin).Seconds()
			r.script(w, e, w.now)
		}
	}
	for i, s := range scrapers {
		name := r.Name
		if r.twice {
			name += "-" + string(rune('a'+i))
		}
		if err := r.write(filepath.Join(dir, name+".yml"), name, w, s); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%s: %d connects failed, the first after %.0f s", r.Name, w.failed, w.first)
}

// An exporter is the real program. Its script may stop and restart it.
type exporter struct {
	t       *testing.T
	cmd     *exec.Cmd
	paused  bool
	dials   chan chan dialed
	restart map[float64]bool
}

type dialed struct {
	conn net.Conn
	err  error
}

// start starts the program in the namespace of the test.
func (e *exporter) start() {
	if e.dials == nil {
		e.dials, e.restart = make(chan chan dialed), map[float64]bool{}
	}
	e.cmd = exec.Command(netnstest.ProgramPath(exporterProgram), "--web.listen-address=127.0.0.1:10149", "--log.level=error")
	e.cmd.Stderr = os.Stderr
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	for range 100 {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:10149", time.Second)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.t.Fatal("the exporter does not listen")
}

func (e *exporter) stop() {
	e.pause(false)
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	_ = e.cmd.Wait()
}

// restartAt restarts the program once, at a time.
func (e *exporter) restartAt(now, at float64) {
	if now >= at && !e.restart[at] {
		e.restart[at] = true
		e.stop()
		e.start()
	}
}

// pause has the program do nothing, as on a host that has no CPU time left: its scrapes fail.
func (e *exporter) pause(yes bool) {
	if yes != e.paused {
		_ = e.cmd.Process.Signal(map[bool]syscall.Signal{true: syscall.SIGSTOP, false: syscall.SIGCONT}[yes])
		e.paused = yes
	}
}

// dial connects to the program, on the thread of the test: it is in the namespace.
func (e *exporter) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	reply := make(chan dialed, 1)
	select {
	case e.dials <- reply:
		d := <-reply
		return d.conn, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A scraper is one Prometheus.
type scraper struct {
	begin   time.Time
	client  *http.Client
	scrapes int
	samples map[string][]string // by series, a value for each scrape
}

func newScraper(dial func(context.Context, string, string) (net.Conn, error)) *scraper {
	return &scraper{
		client:  &http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: dial}},
		samples: map[string][]string{},
	}
}

// run scrapes from begin on, for a time.
func (s *scraper) run(begin time.Time, length time.Duration) {
	s.begin = begin
	for i := range int(length/interval) + 1 {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * interval)))
		values, err := s.scrape()
		up := "1"
		if err != nil {
			values, up = nil, "0"
		}
		s.add("up{"+target+"}", up)
		for series, value := range values {
			s.add(series, value)
		}
		s.scrapes++
		for series, all := range s.samples { // as Prometheus, which marks a series that has ended
			for len(all) < s.scrapes {
				mark := "_"
				if last := all[len(all)-1]; last != "_" && last != "stale" {
					mark = "stale"
				}
				all = append(all, mark)
			}
			s.samples[series] = all
		}
	}
}

func (s *scraper) add(series, value string) {
	if _, ok := s.samples[series]; !ok {
		s.samples[series] = slices.Repeat([]string{"_"}, s.scrapes)
	}
	s.samples[series] = append(s.samples[series], value)
}

const target = `job="ephemeral_port", instance="proxy-1:10149"`

// scrape returns the samples of a scrape that rules may need.
func (s *scraper) scrape() (map[string]string, error) {
	resp, err := s.client.Get("http://127.0.0.1:10149/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for name, family := range families {
		if !kept(name) {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := target
			for _, l := range m.GetLabel() {
				labels += fmt.Sprintf(", %s=%q", l.GetName(), l.GetValue())
			}
			values[name+"{"+labels+"}"] = short(valueOf(m))
		}
	}
	return values, nil
}

// kept reports whether the record has a metric: no rule needs the others, or they tell of the machine.
func kept(name string) bool {
	for _, part := range []string{"_info", "duration", "owner", "udp", "collect_sockets", "namespaces"} {
		if strings.Contains(name, part) {
			return false
		}
	}
	return name == "process_start_time_seconds" || strings.HasPrefix(name, "ephemeral_port_")
}

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Counter != nil:
		return m.Counter.GetValue()
	default:
		return m.Untyped.GetValue()
	}
}

// short writes a value with four digits, or an integer as it is.
func short(v float64) string {
	if math.IsInf(v, 1) {
		return "Inf"
	}
	if v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// write writes the record of a run, in the notation of promtool.
func (r *run) write(path, name string, w *workload, s *scraper) error {
	type series struct{ Series, Values string }
	slices.Sort(w.took)
	took := func(percentile int) float64 {
		return float64(w.took[min(len(w.took)*percentile/100, len(w.took)-1)].Microseconds())
	}
	record := struct {
		Name, About, Answer string
		Failed              int     `yaml:",omitempty"`
		First               float64 `yaml:"first_failed_seconds,omitempty"`
		Last                float64 `yaml:"last_failed_seconds,omitempty"`
		Connects            int
		Median              float64 `yaml:"median_connect_microseconds"`
		P99                 float64 `yaml:"p99_connect_microseconds"`
		Scrapes             int
		Series              []series
	}{name, r.About, r.Answer, w.failed, math.Round(w.first), math.Round(w.last), len(w.took), took(50), took(99), s.scrapes, nil}
	start := float64(s.begin.Unix())
	for _, name := range slices.Sorted(maps.Keys(s.samples)) {
		values := s.samples[name]
		if strings.HasPrefix(name, "process_start_time_seconds") { // the records begin at 1970
			for i, v := range values {
				if f, err := strconv.ParseFloat(v, 64); err == nil {
					values[i] = strconv.FormatFloat(math.Round(f-start), 'f', -1, 64)
				}
			}
		}
		record.Series = append(record.Series, series{name, compact(values)})
	}
	b, err := yaml.Marshal(record)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// compact writes values, those that repeat once with their number.
func compact(values []string) string {
	var all []string
	for i := 0; i < len(values); {
		n := i + 1
		for n < len(values) && values[n] == values[i] {
			n++
		}
		switch more := n - i - 1; {
		case more == 0:
			all = append(all, values[i])
		case values[i] == "_":
			all = append(all, fmt.Sprintf("_x%d", more+1))
		case values[i] == "Inf", values[i] == "stale", more == 1:
			all = append(all, slices.Repeat(values[i:i+1], more+1)...)
		default:
			all = append(all, fmt.Sprintf("%sx%d", values[i], more))
		}
		i = n
	}
	return strings.Join(all, " ")
}
