package web

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
)

// scans makes the scans for all requests, whether for metrics or for the status page. Requests at the
// same time share one.
//
// CoalesceGather of promhttp would share the result until the slowest client has read its answer.
// Then a client that stops reading would give old values to all others.
type scans struct {
	scan    func(context.Context) scan.Snapshot
	port    func(ctx context.Context, number uint16) (scan.Port, error)
	timeout time.Duration // greatest time for a scan
	slots   *slots
	logger  *slog.Logger
	pace    pace

	mu       sync.Mutex
	requests int       // that are being answered, without those for a port
	last     *scanned  // nil before the first ends
	running  *run      // nil if there is none
	next     *run      // begins if running is cut short; nil if nobody has more time than that
	nextPort time.Time // before that, nobody asks who has a port
}

// newScans returns scans within the limits of a Config.
func newScans(c Config) *scans {
	return &scans{scan: c.Scan, port: c.Port, timeout: c.CollectTimeout, slots: newSlots(c.MaxRequests), logger: c.Logger}
}

// A run is a scan for all requests that wait for it.
type run struct {
	budget time.Duration // time for the scan
	done   chan struct{} // closed when it has ended
	got    *scanned      // known then
}

// A scanned is the result of one scan, with the answers that were made of it.
type scanned struct {
	scan.Snapshot
	budget time.Duration // time for the scan

	families *shared[families]
	metrics  *answers[metricsKey]
	pages    *answers[status.View]
}

// withoutMetrics returns the scan without what is made for scrapes: later ones do not ask for it.
func (s *scanned) withoutMetrics() *scanned {
	return &scanned{Snapshot: s.Snapshot, budget: s.budget, pages: s.pages}
}

// enough reports whether a scan with more time, up to budget, could not have read more.
func (s *scanned) enough(budget time.Duration) bool { return s.budget >= budget || !s.CutShort() }

// answer returns the answer to a request that encode makes of a scan. The scan ended less than maxAge
// before the request came, or after that. It had as much time as the request gives, or needed less.
//
// Clients can ask for as many varied answers as they like. Those that wait for theirs must not keep a scan each in memory:
// they come for one when it is their turn.
func (s *scans) answer(r *http.Request, maxAge time.Duration, varied bool, encode func(context.Context, *scanned) (*answer, error)) *answer {
	defer s.addRequest()()
	after := time.Now().Add(-maxAge)
	ctx := r.Context()
	budget := s.timeout
	if timeout, ok := scrapeTimeout(r); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout-min(timeout/20, time.Second/10))
		defer cancel()
		budget = min(budget, max(timeout/2, timeout-time.Second))
		if budget < s.timeout {
			if err := s.pace.allow(budget); err != nil {
				return s.unavailable(r, "a scrape timeout of %v leaves %v for a collection, %w: raise scrape_timeout in Prometheus", timeout, budget.Round(time.Microsecond), err)
			}
		}
	}
	if varied {
		leave, err := s.slots.enterVaried(ctx)
		if err != nil {
			return s.unavailable(r, "%w", s.slots.busy())
		}
		defer leave()
	}
	got, err := s.recent(ctx, after, budget)
	if err != nil {
		return s.unavailable(r, "this host could not be read within the scrape timeout: raise scrape_timeout in Prometheus, or lower --collect.timeout")
	}
	a, err := encode(ctx, got)
	if err != nil {
		return s.unavailable(r, "%w", s.slots.busy())
	}
	return a
}

// unavailable returns an answer with status 503, and logs it if the client is there: Prometheus shows only the status.
func (s *scans) unavailable(r *http.Request, format string, args ...any) *answer {
	if r.Context().Err() == nil {
		s.logger.Warn("A request was answered with status 503", "client", r.RemoteAddr, "err", fmt.Errorf(format, args...))
	}
	return errorAnswer(format, args...)
}

// addRequest counts a request until done is called. Without requests, scans that have ended have no metrics.
func (s *scans) addRequest() (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.requests--; s.requests == 0 && s.last != nil {
			s.last = s.last.withoutMetrics()
		}
	}
}

// recent returns the last scan if it ended after a time and is enough for budget, or else that of wait.
func (s *scans) recent(ctx context.Context, after time.Time, budget time.Duration) (*scanned, error) {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last != nil && last.Time.After(after) && last.enough(budget) {
		return last, nil
	}
	return s.wait(ctx, budget)
}

// portInterval is how often the kernel is asked who has a port, as it walks all sockets for the answer. Requests can name
// any port, so they share none.
const portInterval = time.Second

// answerPort returns the answer to a request that asks who has a port.
func (s *scans) answerPort(r *http.Request, number uint16, encode func(*scan.Port) *answer) *answer {
	ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
	defer cancel()
	s.mu.Lock()
	now := time.Now()
	wait := s.nextPort.Sub(now)
	if wait > portInterval {
		s.mu.Unlock()
		return errorAnswer("others ask who has a port, and one is answered each second: try again later")
	}
	s.nextPort = now.Add(max(wait, 0) + portInterval)
	s.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return errorAnswer("the client is gone")
	}
	port, err := s.port(ctx, number)
	if err != nil {
		return errorAnswer("it could not be read who has port %d: %v", number, err)
	}
	return encode(&port)
}

// errorAnswer returns an answer with status 503.
func errorAnswer(format string, args ...any) *answer {
	a := newAnswer()
	http.Error(a, fmt.Errorf(format, args...).Error(), http.StatusServiceUnavailable)
	return a
}

// scrapeTimeoutHeader is the header with the time that Prometheus waits, in seconds.
const scrapeTimeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// scrapeTimeout returns how long Prometheus waits for the answer, if it says so. A scan gets this
// time less a second, and at least half of it: the rest is to encode and send what it found.
func scrapeTimeout(r *http.Request) (timeout time.Duration, ok bool) {
	seconds, err := strconv.ParseFloat(r.Header.Get(scrapeTimeoutHeader), 64)
	if err != nil || !(seconds > 0 && seconds < time.Hour.Seconds()) {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// wait returns the result of a scan, or the error of ctx. The scan had time of at least budget, or was not cut short.
func (s *scans) wait(ctx context.Context, budget time.Duration) (*scanned, error) {
	running, next := s.join(budget)
	got, err := running.wait(ctx)
	if err != nil || got.enough(budget) {
		return got, err
	}
	return next.wait(ctx)
}

// join returns the scan that runs; it starts one if there is none. If that has less time than budget, next is the one
// to wait for if it is cut short. So nobody waits for more than two, however many others come with little time.
func (s *scans) join(budget time.Duration) (running, next *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.running = &run{budget: budget, done: make(chan struct{})}
		go s.work(s.running)
	}
	if s.running.budget < budget {
		if s.next == nil {
			s.next = &run{done: make(chan struct{})}
		}
		s.next.budget = max(s.next.budget, budget)
	}
	return s.running, s.next
}

// wait returns the result of a scan when it has ended, or the error of ctx.
func (r *run) wait(ctx context.Context) (*scanned, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.done:
		return r.got, nil
	}
}

// work makes a scan, and the next one if the first is cut short.
func (s *scans) work(r *run) {
	for r != nil {
		// With a slot, not at once: meanwhile, more requests come that share it.
		if leave, err := s.slots.enter(context.Background()); err == nil {
			leave()
		}
		r.got = s.make(r.budget)
		s.mu.Lock()
		s.last = r.got
		if !r.got.CutShort() {
			s.next = nil // it is enough for those who wait for the next
		}
		ended := r.done
		s.running, s.next = s.next, nil
		r = s.running
		s.mu.Unlock()
		close(ended)
	}
}

// make makes a scan.
func (s *scans) make(budget time.Duration) *scanned {
	// Not the context of a client: others may wait for the scan when that is gone.
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	got := &scanned{
		Snapshot: s.scan(ctx), budget: budget,
		families: newShared[families](), metrics: newAnswers[metricsKey](s.slots), pages: newAnswers[status.View](s.slots),
	}
	s.pace.observe(&got.Snapshot)
	return got
}
