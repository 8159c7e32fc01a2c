package web

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// request sends a request for metrics.
func request(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// begun reports whether the beginning of an answer can be read.
func begun(t *testing.T, conn net.Conn) bool {
	t.Helper()
	synctest.Wait()
	n, err := conn.Read(make([]byte, 1))
	if n == 0 && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return n > 0
}

// TestStalledReaders has clients that do not read their answers: two more than may be sent at once. The first two are given
// up, the others have their time.
func TestStalledReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConfig(&scanner{})
		c.Registry.MustRegister(&slowCollector{label: strings.Repeat("x", 2<<20)})
		l := serve(t, c)
		most := maxSending / (4 << 20) // the buffer of an answer has up to twice its size
		var stalled []net.Conn
		for range most + 2 {
			conn := l.dial()
			defer conn.Close()
			request(t, conn)
			stalled = append(stalled, conn)
		}
		if begun(t, stalled[0]) || begun(t, stalled[1]) || !begun(t, stalled[2]) || !begun(t, stalled[most+1]) {
			t.Error("not only the first two are given up")
		}

		time.Sleep(sendTimeout - time.Nanosecond)
		if !begun(t, stalled[2]) {
			t.Error("an answer is given up too early")
		}
		time.Sleep(time.Nanosecond)
		if begun(t, stalled[3]) {
			t.Error("an answer is not given up")
		}

		// An answer that was read makes place, and has the values of its own scan.
		for i := range 2 * most {
			conn := l.dial()
			request(t, conn)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if want := fmt.Sprintf("ephemeral_port_capacity_ports{netns=\"self\"} %d\n", 5000+len(stalled)+1+i); err != nil || !strings.Contains(string(body), want) {
				t.Errorf("%v, no %s in\n%.500s", err, want, body)
			}
			conn.Close()
		}
	})
}

// TestSendShared sends one answer to more clients than could have one each.
func TestSendShared(t *testing.T) {
	s, a := newSender(), newAnswer()
	a.body.Grow(maxSending / 2)
	for range 100 {
		s.begin(sending{a, http.NewResponseController(nil)})
	}
	if len(s.sending) != 100 {
		t.Errorf("%d are sent", len(s.sending))
	}
	for len(s.sending) > 0 {
		s.end(s.sending[0])
	}
	if s.bytes != 0 || len(s.clients) != 0 {
		t.Errorf("%d bytes of %d answers", s.bytes, len(s.clients))
	}
}

// TestGiveUpShared gives up all clients of the answer that has taken longest, and no client for nothing.
func TestGiveUpShared(t *testing.T) {
	s := newSender()
	var answers []*answer
	for range 3 {
		a := newAnswer()
		a.body.Grow(maxSending * 2 / 5)
		answers = append(answers, a)
	}
	for _, i := range []int{0, 1, 1, 0, 2} { // the latest client of 1 has begun before that of 0
		s.begin(sending{answers[i], http.NewResponseController(nil)})
	}
	if s.clients[answers[0]] != 2 || s.clients[answers[1]] != 0 || s.clients[answers[2]] != 1 || len(s.sending) != 3 {
		t.Errorf("%d, %d and %d clients", s.clients[answers[0]], s.clients[answers[1]], s.clients[answers[2]])
	}
}
