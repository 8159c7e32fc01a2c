package web

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	// sendTimeout is how long a client may take to read an answer.
	sendTimeout = 10 * time.Second

	// maxSending is how many answers are being sent at once, and to no more than half of the connections.
	maxSending = 64
)

// An answer is an http.ResponseWriter that keeps what is written.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newAnswer() *answer { return &answer{header: http.Header{}, status: http.StatusOK} }

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// A sender sends answers. Clients that do not read theirs keep nobody waiting: if there are too
// many, the one that has taken longest is given up.
type sender struct {
	most int // answers at once

	mu      sync.Mutex
	sending []*http.ResponseController // in the order of their beginning
}

// send writes an answer to the client. What a client does not read is lost.
func (s *sender) send(w http.ResponseWriter, a *answer) {
	c := http.NewResponseController(w)
	// Where the connection has no deadlines, the server's WriteTimeout holds.
	_ = c.SetWriteDeadline(time.Now().Add(sendTimeout))
	s.begin(c)
	defer s.end(c)
	maps.Copy(w.Header(), a.header)
	w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes())
	_ = c.Flush() // while s can still give it up
}

func (s *sender) begin(c *http.ResponseController) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sending) >= s.most {
		_ = s.sending[0].SetWriteDeadline(time.Now())
		s.sending = s.sending[1:]
	}
	s.sending = append(s.sending, c)
}

func (s *sender) end(c *http.ResponseController) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.sending, c); i >= 0 {
		s.sending = slices.Delete(s.sending, i, i+1)
	}
}
