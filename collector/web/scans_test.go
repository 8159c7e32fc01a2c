package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"ephemeral_port_exporter/collector"
)

const (
	succeeded = `ephemeral_port_collect_success{netns="self"} 1`
	failed    = `ephemeral_port_collect_success{netns="self"} 0`
)

// TestShare makes 100 scrapes and asks for 100 pages during one scan. All get its result, in whatever words they ask, and
// its metrics are gathered once. Probes do not wait.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scanner{takes: 900 * time.Millisecond}
		c, gathered := newConfig(s), &slowCollector{}
		c.MaxRequests = 1
		c.Registry.MustRegister(gathered)
		h := newServer(t, c).Handler
		var replies []<-chan reply
		for i := range 100 {
			replies = append(replies,
				begin(h, fmt.Sprintf("/metrics?q=%d", i), "Accept", fmt.Sprintf("text/plain;q=0.%d", i+1), "Accept-Encoding", fmt.Sprintf("x%d", i), scrapeTimeoutHeader, "10"),
				begin(h, fmt.Sprintf("/?format=json&q=%d", i)))
		}
		synctest.Wait()
		for _, path := range []string{HealthyPath, ReadyPath} {
			(<-begin(h, path)).check(t, http.StatusOK, 0, "OK\n")
		}
		for i, r := range replies {
			(<-r).check(t, http.StatusOK, 900*time.Millisecond, []string{succeeded, `"outcome": "collected"`}[i%2])
		}
		if scans, times := s.scans.Load(), gathered.times.Load(); scans != 1 || times != 1 {
			t.Errorf("%d scans, %d times gathered", scans, times)
		}
	})
}

// A slowCollector is a prometheus.Collector that sends one metric.
type slowCollector struct {
	takes time.Duration
	label string
	times atomic.Int32
}

// Describe implements prometheus.Collector.
func (c *slowCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *slowCollector) Collect(ch chan<- prometheus.Metric) {
	c.times.Add(1)
	time.Sleep(c.takes)
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("slow", "Help.", []string{"label"}, nil), prometheus.GaugeValue, 1, c.label)
}

// TestNoSlot has answers that take 3 s, one at once. A scrape that cannot wait so long says so, and keeps none from others.
func TestNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConfig(&scanner{})
		c.MaxRequests = 1
		c.Registry.MustRegister(&slowCollector{takes: 3 * time.Second})
		h := newServer(t, c).Handler
		first := begin(h, "/metrics")
		synctest.Wait()
		filtered, impatient := begin(h, "/metrics?name[]=slow", scrapeTimeoutHeader, "0.5"), begin(h, "/metrics", scrapeTimeoutHeader, "0.6")
		(<-filtered).check(t, http.StatusServiceUnavailable, 475*time.Millisecond, "")
		(<-impatient).check(t, http.StatusServiceUnavailable, 570*time.Millisecond, "")
		(<-first).check(t, http.StatusOK, 3*time.Second, succeeded)
		time.Sleep(time.Minute) // until the scan of the impatient ends
		(<-begin(h, "/metrics?name[]=slow")).check(t, http.StatusOK, 3*time.Second, "slow{")
	})
}

// TestSlots checks that answers that clients can vary leave slots to others.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i := range 3 {
			if _, err := s.enterVaried(ctx); (err == nil) != (i < 2) {
				t.Errorf("varied %d: %v", i, err)
			}
		}
		var leave func()
		for i := range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			l, err := s.enter(ctx)
			if (err == nil) != (i < 4) {
				t.Errorf("%d: %v", i, err)
			}
			if err == nil {
				leave = l
			}
		}
		leave()
		if _, err := s.enter(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestVariedFormats has a scrape that waits for a scan with a format that nobody else asks for. Others of these formats wait for their turn,
// and the usual ones do not.
func TestVariedFormats(t *testing.T) {
	const proto = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding="
	for accept, varied := range map[string]bool{
		"": false,
		"text/plain;version=1.0.0;escaping=allow-utf-8":                   false,
		"application/openmetrics-text;version=1.0.0;escaping=underscores": false,
		proto + "delimited;escaping=allow-utf-8":                          false,
		"text/plain;version=1.0.0;escaping=dots":                          true,
		"application/openmetrics-text;version=1.0.0;escaping=values":      true,
		proto + "text":         true,
		proto + "compact-text": true,
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newServer(t, newConfig(&scanner{takes: 3 * time.Second})).Handler
			first := begin(h, "/metrics", "Accept", "text/plain;version=1.0.0;escaping=values")
			synctest.Wait()
			(<-begin(h, "/metrics", "Accept", accept, scrapeTimeoutHeader, "2")).check(t, http.StatusServiceUnavailable, 1900*time.Millisecond,
				map[bool]string{false: "this host could not be read", true: "--web.max-requests lets 2 be made at once"}[varied])
			<-first
		})
	}
}

// TestUnlimited answers any number of requests at once with --web.max-requests=0.
func TestUnlimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConfig(&scanner{takes: 3 * time.Second})
		c.MaxRequests = 0
		h := newServer(t, c).Handler
		var replies []<-chan reply
		for range 200 {
			replies = append(replies, begin(h, "/metrics"))
		}
		for _, r := range replies {
			(<-r).check(t, http.StatusOK, 3*time.Second, succeeded)
		}
	})
}

// TestShareAnswer gives each of the scrapes that share a scan the format that it asked for.
func TestShareAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scanner{takes: time.Second}
		h := newServer(t, newConfig(s)).Handler
		accepts := map[string]string{"": "text/plain;", "application/openmetrics-text": "application/openmetrics-text;"}
		replies := map[string][]<-chan reply{}
		for range 5 {
			for accept := range accepts {
				replies[accept] = append(replies[accept], begin(h, "/metrics", "Accept", accept))
			}
		}
		for accept, want := range accepts {
			for _, r := range replies[accept] {
				got := <-r
				if contentType := got.Header().Get("Content-Type"); !strings.HasPrefix(contentType, want) || strings.Contains(got.Body.String(), "# EOF") != (accept != "") {
					t.Errorf("Accept %q: %s:\n%.200s", accept, contentType, got.Body)
				}
			}
		}
		if got := s.scans.Load(); got != 1 {
			t.Errorf("%d scans", got)
		}
	})
}

// TestShareNames gives each of the scrapes that share a scan the metrics that it asked for, in any order.
func TestShareNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scanner{takes: time.Second}
		h := newServer(t, newConfig(s)).Handler
		queries := []string{"", "?name[]=none", "?name[]=ephemeral_port_max_utilization_ratio", "", "?name[]=none"}
		var replies []<-chan reply
		for _, query := range queries {
			replies = append(replies, begin(h, "/metrics"+query))
		}
		for i, r := range replies {
			body := (<-r).Body.String()
			if all := strings.Contains(body, "\nephemeral_port_collect_success"); all != (queries[i] == "") || strings.Contains(queries[i], "none") && body != "" {
				t.Errorf("%q: %.300s", queries[i], body)
			}
		}
		if got := s.scans.Load(); got != 1 {
			t.Errorf("%d scans", got)
		}
	})
}

// TestMetricsLikePromhttp compares the answers with those of promhttp.
func TestMetricsLikePromhttp(t *testing.T) {
	c := newConfig(&scanner{})
	c.ExporterMetrics = false
	c.Registry.MustRegister(&slowCollector{label: "ü"})
	c.Registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "gauge_é", Help: "Help."}))
	var accepts []string
	for _, f := range expfmt.DefaultOpenMetricsAcceptedFormats() {
		accepts = append(accepts, string(f), string(f)+";escaping=dots", string(f)+";escaping=allow-utf-8", string(f)+"; escaping=nonsense")
	}
	accepts = append(accepts, "", "*/*", "text/html", "application/openmetrics-text;version=0.0.1;q=0.1,text/plain;q=0.9", "application/openmetrics-text")
	for _, accept := range accepts {
		for _, query := range []string{"", "?name[]=slow", "?name[]=none", "?q=1&name[]=slow&name[]=slow&name[]=gauge_%C3%A9", "?name[]=%zz"} {
			headers := []string{"Accept", accept, "Accept-Encoding", "gzip"}
			want := get(promhttp.HandlerFor(prometheus.Gatherers{hostRegistry(&scanner{}), c.Registry}, promhttp.HandlerOpts{EnableOpenMetrics: true}), "/"+query, headers...)
			c.Scan = (&scanner{}).scan
			got := get(newServer(t, c).Handler, "/metrics"+query, headers...)
			if d := cmp.Diff(unzip(t, want), unzip(t, got)); d != "" || got.Header().Get("Content-Type") != want.Header().Get("Content-Type") {
				t.Errorf("Accept %q, %s: %s, want %s (-want +got):\n%.1000s", accept, query, got.Header(), want.Header(), d)
			}
		}
	}
}

// hostRegistry returns the metrics of one scan.
func hostRegistry(s *scanner) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector.New(s.scan(context.Background())))
	return r
}

// unzip returns the body of an answer.
func unzip(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	if w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("not compressed: %v", w.Header())
	}
	r, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEncoding checks which clients get gzip. What they ask for is never an error, and writes no log.
func TestEncoding(t *testing.T) {
	c := newConfig(&scanner{})
	var log bytes.Buffer
	c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	h := newServer(t, c).Handler
	for accept, want := range map[string]string{
		"": "", "gzip": "gzip", "br, GZIP;q=0.5": "gzip", "gzip;q=1.0, *;q=0.1": "gzip", "gzip, identity": "gzip", "gzip; q=0.2, identity;q=0.1": "gzip",
		"gzip;q=0": "", "gzip;q=0.1, identity;q=0.2": "", "identity;q=0": "", "*;q=0": "", "gzip;q=x": "", "gzip;q=NaN": "", "*": "", "zstd": "", ";;,": "",
	} {
		w := get(h, "/metrics", "Accept-Encoding", accept)
		if got := w.Header().Get("Content-Encoding"); w.Code != http.StatusOK || got != want {
			t.Errorf("%q: %d, encoding %q, want %q", accept, w.Code, got, want)
		}
	}
	if log.Len() > 0 {
		t.Errorf("%s", &log)
	}
}

// TestAnswers checks that answers are made once, and how many are kept.
func TestAnswers(t *testing.T) {
	a, made := newAnswers[int](newSlots(1)), 0
	for _, varied := range []bool{false, true} {
		get := func(key int) {
			if _, err := a.get(t.Context(), key, varied, func() *answer { made++; return newAnswer() }); err != nil {
				t.Error(err)
			}
		}
		made = 0
		first := map[bool]int{false: 0, true: 100}[varied]
		for range 2 {
			for i := range maxKept {
				get(first + i)
			}
		}
		if made != maxKept {
			t.Errorf("%d made, want %d", made, maxKept)
		}
		get(first + maxKept)
		get(first + maxKept)
		get(first)
		if made != maxKept+2 || len(a.made) > 2*maxKept {
			t.Errorf("%d made, want %d; %d kept", made, maxKept+2, len(a.made))
		}
	}
}

// TestShared checks that the next one makes what the first could not.
func TestShared(t *testing.T) {
	s, failed := newShared[int](), errors.New("failed")
	if _, err := s.get(t.Context(), func() (int, error) { return 0, failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	for range 2 {
		if v, err := s.get(t.Context(), func() (int, error) { failed = nil; return 7, nil }); v != 7 || err != nil {
			t.Errorf("got %d, %v", v, err)
		}
	}
}

// TestAge checks that a page uses a scan of the last second, also of a scrape, and that a scrape never
// does.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, newConfig(&scanner{})).Handler
		check := func(path, text string) {
			t.Helper()
			(<-begin(h, path)).check(t, http.StatusOK, 0, text)
		}
		check("/metrics", "ephemeral_port_capacity_ports{netns=\"self\"} 5001\n")
		check("/", "5001")
		time.Sleep(maxPageAge - 1)
		check("/?format=json", "5001")
		check("/?destination=10.0.0.2:443", "5001")
		check("/metrics", "ephemeral_port_capacity_ports{netns=\"self\"} 5002\n")
		check("/", "5002")
		time.Sleep(maxPageAge)
		check("/", "5003")
		check("/", "5003")
		check("/metrics", "ephemeral_port_capacity_ports{netns=\"self\"} 5004\n")
	})
}

// TestTimeout checks that an answer comes within the timeout of the scrape, and how long a scan may take.
func TestTimeout(t *testing.T) {
	const collectTimeout, never = 20 * time.Second, time.Hour
	tests := []struct {
		header string
		scan   time.Duration // may take
		answer time.Duration // comes if the scan never ends
	}{
		{"", collectTimeout, never},
		{"nonsense", collectTimeout, never},
		{"0", collectTimeout, never},
		{"-1", collectTimeout, never},
		{"NaN", collectTimeout, never},
		{"1e300", collectTimeout, never},
		{"3600", collectTimeout, never},
		{"60", collectTimeout, 59900 * time.Millisecond},
		{"15", 14 * time.Second, 14900 * time.Millisecond},
		{"10", 9 * time.Second, 9900 * time.Millisecond},
		{"3.5", 2500 * time.Millisecond, 3400 * time.Millisecond},
		{"0.5", 250 * time.Millisecond, 475 * time.Millisecond},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			s := &scanner{takes: never, deaf: true}
			c := newConfig(s)
			c.CollectTimeout = collectTimeout
			got := <-begin(newServer(t, c).Handler, "/metrics", scrapeTimeoutHeader, tt.header)
			if budget := time.Duration(s.budget.Load()); got.after != tt.answer || budget != tt.scan {
				t.Errorf("%q: answer after %v, want %v; the scan has %v, want %v", tt.header, got.after, tt.answer, budget, tt.scan)
			}
			if tt.answer != never {
				got.check(t, http.StatusServiceUnavailable, tt.answer, "raise scrape_timeout")
				time.Sleep(never) // the scan goes on
			}
		})
	}
}

// TestTimeoutTooShort checks that a scrape begins no scan if it has too little time for that, and says so: less than
// any scan takes, or than half of what the last one took. After that, one may try from time to time.
func TestTimeoutTooShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scanner{takes: 3 * time.Second}
		h := newServer(t, newConfig(s)).Handler
		check := func(timeout string, scans int32, status int, after time.Duration, text string) {
			t.Helper()
			(<-begin(h, "/metrics", scrapeTimeoutHeader, timeout)).check(t, status, after, text)
			if got := s.scans.Load(); got != scans {
				t.Errorf("%s: %d scans, want %d", timeout, got, scans)
			}
		}
		for _, timeout := range []string{"1e-300", "0.001", "0.199"} {
			check(timeout, 0, http.StatusServiceUnavailable, 0, "for a collection, which needs 100ms at least: raise scrape_timeout")
		}
		check("0.2", 1, http.StatusOK, 100*time.Millisecond, failed) // nobody knows yet how long it takes
		check("10", 2, http.StatusOK, 3*time.Second, succeeded)
		check("2.4", 2, http.StatusServiceUnavailable, 0, "a scrape timeout of 2.4s leaves 1.4s for a collection, and the last one took 3s: raise")
		check("2.5", 3, http.StatusOK, 1500*time.Millisecond, failed)
		check("2.4", 3, http.StatusServiceUnavailable, 0, "took 3s")
		time.Sleep(5 * time.Second)                                   // as reference.md says
		check("2.4", 4, http.StatusOK, 1400*time.Millisecond, failed) // one may try
		check("2.4", 4, http.StatusServiceUnavailable, 0, "took 3s")
		time.Sleep(5 * time.Second) // as reference.md says
		s.takes = 20 * time.Millisecond
		check("2.4", 5, http.StatusOK, 20*time.Millisecond, succeeded)
		check("0.5", 6, http.StatusOK, 20*time.Millisecond, succeeded)
	})
}

// TestShortCollectTimeout checks that --collect.timeout may be shorter than the least time for a scan.
func TestShortCollectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConfig(&scanner{takes: 20 * time.Millisecond})
		c.CollectTimeout = 50 * time.Millisecond
		h := newServer(t, c).Handler
		(<-begin(h, "/metrics")).check(t, http.StatusOK, 20*time.Millisecond, succeeded)
		(<-begin(h, "/metrics", scrapeTimeoutHeader, "0.1")).check(t, http.StatusOK, 20*time.Millisecond, succeeded)
	})
}

// TestTimeoutShared checks that a scrape that cannot wait, and one that is gone, leave the scan to others.
func TestTimeoutShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, newConfig(&scanner{takes: 3 * time.Second})).Handler
		ctx, cancel := context.WithCancel(t.Context())
		go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
		synctest.Wait()
		cancel()
		synctest.Wait()

		impatient := begin(h, "/metrics", scrapeTimeoutHeader, "0.6")
		patient, other := begin(h, "/metrics"), begin(h, "/metrics")
		(<-impatient).check(t, http.StatusServiceUnavailable, 570*time.Millisecond, "raise scrape_timeout")
		(<-patient).check(t, http.StatusOK, 3*time.Second, succeeded)
		(<-other).check(t, http.StatusOK, 3*time.Second, succeeded)
	})
}

// TestTimeoutIncomplete has a scan that a scrape with a short timeout has started. If it is incomplete, a scrape with
// more time gets another one, once.
func TestTimeoutIncomplete(t *testing.T) {
	tests := []struct {
		name    string
		takes   time.Duration
		timeout string // of the second scrape; the first has 2 s, and its scan 1 s
		want    string
		after   time.Duration
		scans   int32
	}{
		{"more time", 1500 * time.Millisecond, "10", succeeded, 2500 * time.Millisecond, 2},
		{"little more time", 1500 * time.Millisecond, "2.9", succeeded, 2500 * time.Millisecond, 2},
		{"no more time", 1500 * time.Millisecond, "2", failed, time.Second, 1},
		{"too little time", time.Minute, "10", failed, 6 * time.Second, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scanner{takes: tt.takes}
				h := newServer(t, newConfig(s)).Handler
				first := begin(h, "/metrics", scrapeTimeoutHeader, "2")
				synctest.Wait()
				second := begin(h, "/metrics", scrapeTimeoutHeader, tt.timeout)
				(<-first).check(t, http.StatusOK, time.Second, failed) // what could be read by then
				(<-second).check(t, http.StatusOK, tt.after, tt.want)
				if got := s.scans.Load(); got != tt.scans {
					t.Errorf("%d scans, want %d", got, tt.scans)
				}
			})
		})
	}

	t.Run("complete", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &scanner{takes: 900 * time.Millisecond}
			h := newServer(t, newConfig(s)).Handler
			first := begin(h, "/metrics", scrapeTimeoutHeader, "2")
			synctest.Wait()
			second, page := begin(h, "/metrics"), begin(h, "/")
			for _, r := range []<-chan reply{first, second} {
				(<-r).check(t, http.StatusOK, 900*time.Millisecond, succeeded)
			}
			(<-page).check(t, http.StatusOK, 900*time.Millisecond, "5001")
			if got := s.scans.Load(); got != 1 {
				t.Errorf("%d scans", got)
			}
		})
	})
}

// TestTimeoutStream has 50 clients that scrape all the time, with half the budget of the scrapes of Prometheus and less than a
// scan takes. Each scrape of Prometheus has numbers.
func TestTimeoutStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const budget = 2500 * time.Millisecond
		h := newServer(t, newConfig(&scanner{takes: budget + 500*time.Millisecond})).Handler
		var ended atomic.Bool
		for range 50 {
			go func() {
				for !ended.Load() {
					<-begin(h, "/metrics", scrapeTimeoutHeader, "3.5")
					time.Sleep(10 * time.Millisecond)
				}
			}()
		}
		for i := range 30 {
			time.Sleep(time.Duration(i) * 100 * time.Millisecond)
			got := <-begin(h, "/metrics", scrapeTimeoutHeader, "10")
			if got.Code != http.StatusOK || !strings.Contains(got.Body.String(), succeeded) || got.after > 2*budget+time.Second {
				t.Errorf("scrape %d: status %d after %v:\n%.200s", i, got.Code, got.after, got.Body)
			}
		}
		ended.Store(true)
		time.Sleep(time.Minute)
	})
}

// TestAgeIncomplete checks that a page does not use a scan that was cut short for a scrape.
func TestAgeIncomplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, newConfig(&scanner{takes: 2 * time.Second})).Handler
		(<-begin(h, "/metrics", scrapeTimeoutHeader, "1")).check(t, http.StatusOK, 500*time.Millisecond, failed)
		(<-begin(h, "/")).check(t, http.StatusOK, 2*time.Second, "5002")
	})
}

// TestAgeFull checks that a page uses a scan that was cut short after all the time there is: another one has no more.
func TestAgeFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, newConfig(&scanner{takes: time.Minute})).Handler
		(<-begin(h, "/metrics")).check(t, http.StatusOK, 5*time.Second, failed)
		(<-begin(h, "/")).check(t, http.StatusOK, 0, "")
	})
}
