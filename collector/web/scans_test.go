package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	succeeded = `ephemeral_port_collect_success{netns="self"} 1`
	failed    = `ephemeral_port_collect_success{netns="self"} 0`
)

// TestShare makes 30 scrapes and asks for 30 pages during one scan. 40 of them get its result, the others
// status 503 after a second. A probe does not wait.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scanner{takes: 3 * time.Second}
		h := newServer(t, newConfig(s)).Handler
		var replies []<-chan reply
		for range 30 {
			replies = append(replies, begin(h, "/metrics"), begin(h, "/?format=json"))
		}
		synctest.Wait()
		for _, path := range []string{HealthyPath, ReadyPath} {
			(<-begin(h, path)).check(t, http.StatusOK, 0, "OK\n")
		}
		refused := 0
		for i, r := range replies {
			got := <-r
			if got.Code != http.StatusOK {
				refused++
				got.check(t, http.StatusServiceUnavailable, time.Second, "40 requests are being served")
				continue
			}
			got.check(t, http.StatusOK, 3*time.Second, []string{succeeded, `"outcome": "collected"`}[i%2])
		}
		if refused != 20 || s.scans.Load() != 1 {
			t.Errorf("%d refused, %d scans", refused, s.scans.Load())
		}

		// All places are free again.
		(<-begin(h, "/metrics")).check(t, http.StatusOK, 3*time.Second, succeeded)
	})
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

// TestAnswersBound checks that answers are made once, if they are among the first.
func TestAnswersBound(t *testing.T) {
	a, made := newAnswers(2), 0
	encode := func() *answer { made++; return newAnswer() }
	for _, tt := range []struct {
		key  string
		want int
	}{{"1", 1}, {"1", 1}, {"2", 2}, {"3", 3}, {"3", 4}, {"2", 4}, {"1", 4}} {
		a.get(tt.key, encode)
		if made != tt.want {
			t.Errorf("%s: %d made, want %d", tt.key, made, tt.want)
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
// any scan takes, or than half of what one took in the last minute.
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
			check(timeout, 0, http.StatusServiceUnavailable, 0, "which takes at least 100ms on this host: raise scrape_timeout")
		}
		check("0.2", 1, http.StatusOK, 100*time.Millisecond, failed) // nobody knows yet how long it takes
		check("10", 2, http.StatusOK, 3*time.Second, succeeded)
		check("2.4", 2, http.StatusServiceUnavailable, 0, "a scrape timeout of 2.4s leaves 1.4s for a collection, which takes at least 1.5s on this host")
		check("2.5", 3, http.StatusOK, 1500*time.Millisecond, failed)
		check("2.4", 3, http.StatusServiceUnavailable, 0, "at least 1.5s")
		time.Sleep(paceAge)
		check("2.4", 4, http.StatusOK, 1400*time.Millisecond, failed)
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
		c := newConfig(&scanner{takes: 3 * time.Second})
		c.MaxRequests = 3
		h := newServer(t, c).Handler
		ctx, cancel := context.WithCancel(t.Context())
		go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
		synctest.Wait()
		cancel()
		synctest.Wait()

		impatient := begin(h, "/metrics", scrapeTimeoutHeader, "0.6")
		patient, other := begin(h, "/metrics"), begin(h, "/metrics")
		synctest.Wait()
		late := begin(h, "/metrics", scrapeTimeoutHeader, "0.4") // than those that may be served
		(<-late).check(t, http.StatusServiceUnavailable, 380*time.Millisecond, "the scrape timeout is over")
		(<-impatient).check(t, http.StatusServiceUnavailable, 570*time.Millisecond, "raise scrape_timeout")
		(<-patient).check(t, http.StatusOK, 3*time.Second, succeeded)
		(<-other).check(t, http.StatusOK, 3*time.Second, succeeded)
	})
}

// TestTimeoutIncomplete has a scan that a scrape with a short timeout has started, and that is incomplete. A
// scrape with much more time gets another one, once.
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
		{"little more time", 1500 * time.Millisecond, "3", failed, time.Second, 1},
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
}

// TestAgeIncomplete checks that a page does not use a scan that was cut short for a scrape.
func TestAgeIncomplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, newConfig(&scanner{takes: 2 * time.Second})).Handler
		(<-begin(h, "/metrics", scrapeTimeoutHeader, "1")).check(t, http.StatusOK, 500*time.Millisecond, failed)
		(<-begin(h, "/")).check(t, http.StatusOK, 2*time.Second, "5002")
	})
}
