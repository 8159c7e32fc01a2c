package web

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"ephemeral_port_exporter/collector/scan"
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
	slots   chan struct{} // one element for each request that is being answered; nil for no limit
	flight  singleflight.Group
	last    atomic.Pointer[scanned]
	pace    pace

	mu       sync.Mutex
	nextPort time.Time // before that, nobody asks who has a port
}

// newScans returns scans within the limits of a Config.
func newScans(c Config) *scans {
	s := &scans{scan: c.Scan, port: c.Port, timeout: c.CollectTimeout}
	if c.MaxRequests > 0 {
		s.slots = make(chan struct{}, c.MaxRequests)
	}
	return s
}

// A scanned is the result of one scan, with the answers that were made of it.
type scanned struct {
	scan.Snapshot
	budget     time.Duration // time for the scan
	incomplete bool          // the budget was too small

	metrics, pages *answers
}

// answers are made once for all requests that ask for the same.
type answers struct {
	most int // to keep

	mu   sync.Mutex
	kept map[string]func() *answer
}

// get returns the answer to the requests with a key.
func (a *answers) get(key string, encode func() *answer) *answer {
	a.mu.Lock()
	once, ok := a.kept[key]
	if !ok {
		once = sync.OnceValue(encode)
		if len(a.kept) < a.most {
			a.kept[key] = once
		}
	}
	a.mu.Unlock()
	return once()
}

func newAnswers(most int) *answers { return &answers{most: most, kept: map[string]func() *answer{}} }

// maxPages is how many pages are kept of a scan. Memory is why: a request can name any destination.
const maxPages = 8

// answer returns the answer to a request that encode makes of a scan. The scan ended less than maxAge
// ago, or after the request came. The answer takes a slot until it is made, not until the client has
// read it.
func (s *scans) answer(r *http.Request, maxAge time.Duration, encode func(*scanned) *answer) *answer {
	ctx := r.Context()
	budget := s.timeout
	if timeout, ok := scrapeTimeout(r); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout-min(timeout/20, time.Second/10))
		defer cancel()
		budget = min(budget, max(timeout/2, timeout-time.Second))
		if least := min(s.pace.least(), s.timeout); budget < least {
			return errorAnswer("a scrape timeout of %v leaves %v for a collection, which takes at least %v on this host: raise scrape_timeout in Prometheus", timeout, budget, least)
		}
	}
	leave, busy := s.enter(ctx)
	if busy != nil {
		return busy
	}
	defer leave()
	if last := s.last.Load(); maxAge > 0 && last != nil && !last.incomplete && time.Since(last.Time) < maxAge {
		return encode(last)
	}
	got, err := s.wait(ctx, budget)
	if err != nil {
		return errorAnswer("this host could not be read within the scrape timeout: raise scrape_timeout in Prometheus, or lower --collect.timeout")
	}
	return encode(got)
}

// enter takes a slot, until leave is called. If there is none, it returns what to answer.
func (s *scans) enter(ctx context.Context) (leave func(), busy *answer) {
	if s.slots == nil {
		return func() {}, nil
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-ctx.Done():
		return nil, errorAnswer("the scrape timeout is over")
	case <-time.After(slotTimeout):
		return nil, errorAnswer("%d requests are being served, which is the limit of --web.max-requests: try again later", cap(s.slots))
	}
}

// portInterval is how often the kernel is asked who has a port, as it walks all sockets for the answer. Requests can name
// any port, so they share none.
const portInterval = time.Second

// answerPort returns the answer to a request that asks who has a port.
func (s *scans) answerPort(r *http.Request, number uint16, encode func(*scan.Port) *answer) *answer {
	ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
	defer cancel()
	leave, busy := s.enter(ctx)
	if busy != nil {
		return busy
	}
	defer leave()
	s.mu.Lock()
	now := time.Now()
	wait := s.nextPort.Sub(now)
	if wait > slotTimeout {
		s.mu.Unlock()
		return errorAnswer("others ask who has a port, and one is answered each second: try again later")
	}
	s.nextPort = now.Add(max(wait, 0) + portInterval)
	s.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return errorAnswer("the scrape timeout is over")
	}
	port, err := s.port(ctx, number)
	if err != nil {
		return errorAnswer("it could not be read who has port %d: %v", number, err)
	}
	return encode(&port)
}

// slotTimeout is how long a request waits for others to be answered.
const slotTimeout = time.Second

// errorAnswer returns an answer with status 503.
func errorAnswer(format string, args ...any) *answer {
	a := newAnswer()
	http.Error(a, fmt.Sprintf(format, args...), http.StatusServiceUnavailable)
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

// wait returns the result of a scan, or the error of ctx. A scan that it starts takes at most budget.
// A scan that another request has started with much less time can be incomplete: then wait starts
// another one, once.
func (s *scans) wait(ctx context.Context, budget time.Duration) (*scanned, error) {
	for last := false; ; last = true {
		result := s.flight.DoChan("", func() (any, error) { return s.run(budget), nil })
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case r := <-result:
			got := r.Val.(*scanned)
			if !last && got.incomplete && got.budget < budget/2 {
				continue
			}
			return got, nil
		}
	}
}

// run makes a scan.
func (s *scans) run(budget time.Duration) *scanned {
	// Not that of a client: others may wait for it when that is gone.
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	got := &scanned{Snapshot: s.scan(ctx), budget: budget, metrics: newAnswers(math.MaxInt), pages: newAnswers(maxPages)}
	s.pace.observe(&got.Snapshot)
	got.incomplete = slices.ContainsFunc(got.Namespaces, func(n scan.Namespace) bool { return n.TCP.Outcome == scan.Deadline })
	// Without the answers to scrapes: later ones do not ask for them.
	s.last.Store(&scanned{Snapshot: got.Snapshot, incomplete: got.incomplete, pages: got.pages})
	return got
}
