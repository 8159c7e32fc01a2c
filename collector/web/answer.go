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

	// maxSending is how many bytes the answers have that are being sent at once. One that goes to many clients counts once.
	maxSending = 32 << 20
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

// A sender sends answers. Clients that do not read theirs keep nobody waiting: if the answers take too
// much memory, the one whose clients have taken longest is given up.
type sender struct {
	mu      sync.Mutex
	sending []sending       // in the order of their beginning
	clients map[*answer]int // of each answer that is being sent
	bytes   int             // of these answers
}

func newSender() *sender { return &sender{clients: map[*answer]int{}} }

// A sending is an answer that is being sent to a client.
type sending struct {
	*answer
	client *http.ResponseController
}

// send writes an answer to the client. What a client does not read is lost.
func (s *sender) send(w http.ResponseWriter, a *answer) {
	c := http.NewResponseController(w)
	// Where the connection has no deadlines, the server's WriteTimeout holds.
	_ = c.SetWriteDeadline(time.Now().Add(sendTimeout))
	s.begin(sending{a, c})
	defer s.end(sending{a, c})
	maps.Copy(w.Header(), a.header)
	w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes())
	_ = c.Flush() // while s can still give it up
}

func (s *sender) begin(one sending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = append(s.sending, one)
	if s.clients[one.answer]++; s.clients[one.answer] == 1 {
		s.bytes += one.body.Cap()
	}
	for len(s.clients) > 1 && s.bytes > maxSending {
		s.giveUp(s.oldest())
	}
}

// oldest returns the answer whose latest client has taken longest.
func (s *sender) oldest() *answer {
	latest := map[*answer]int{}
	for i, one := range s.sending {
		latest[one.answer] = i
	}
	first := s.sending[len(s.sending)-1].answer
	for a, i := range latest {
		if i < latest[first] {
			first = a
		}
	}
	return first
}

// giveUp ends the sending of an answer to all its clients: without one of them, it would take as much memory.
func (s *sender) giveUp(a *answer) {
	for i, one := range slices.Backward(s.sending) {
		if one.answer == a {
			_ = one.client.SetWriteDeadline(time.Now())
			s.remove(i)
		}
	}
}

func (s *sender) end(ended sending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.sending, ended); i >= 0 {
		s.remove(i)
	}
}

// remove forgets an element of sending.
func (s *sender) remove(i int) {
	a := s.sending[i].answer
	if s.clients[a]--; s.clients[a] == 0 {
		delete(s.clients, a)
		s.bytes -= a.body.Cap()
	}
	s.sending = slices.Delete(s.sending, i, i+1)
}
