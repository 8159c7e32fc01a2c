package web

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const checkTakes = 50 * time.Millisecond

// checkPasswords stands for the handler of exporter-toolkit, which checks one password after another. The right one is "secret".
func checkPasswords(next http.Handler) http.Handler {
	turn := make(chan struct{}, 1) // a mutex would block synctest
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := r.BasicAuth(); ok {
			turn <- struct{}{}
			time.Sleep(checkTakes)
			<-turn
			if password == "secret" {
				next.ServeHTTP(w, r)
				return
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
}

// TestPasswords has a client that sends wrong passwords on many connections. It keeps others waiting for one check, and none whose
// password was right before. With two listeners, exporter-toolkit checks each password twice.
func TestPasswords(t *testing.T) {
	for listeners := 1; listeners <= 2; listeners++ {
		t.Run(fmt.Sprintf("%d listeners", listeners), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				checks := time.Duration(listeners) * checkTakes // of a request
				l := pipeListener{make(chan net.Conn)}
				server := newServer(t, newConfig(&scanner{}))
				for i := range listeners {
					if server.Handler = checkPasswords(server.Handler); i > 0 {
						server.BaseContext(l)
					}
				}
				go func() { _ = server.Serve(l) }()
				defer server.Close()
				ask := func(client, password string) net.Conn {
					conn, at := net.Pipe()
					l.conns <- tcpConn{at, client + ":1"}
					t.Cleanup(func() { conn.Close() })
					r, err := http.NewRequest(http.MethodGet, "http://x/metrics", nil)
					if err != nil {
						t.Fatal(err)
					}
					r.SetBasicAuth("prometheus", password)
					if err := r.Write(conn); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					return conn
				}
				check := func(conn net.Conn, status int, atMost time.Duration) {
					t.Helper()
					start := time.Now()
					resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatal(err)
					}
					body, err := io.ReadAll(resp.Body)
					if err != nil || resp.StatusCode != status || strings.Contains(string(body), succeeded) != (status == http.StatusOK) {
						t.Errorf("%s, %v:\n%.200s", resp.Status, err, body)
					}
					if took := time.Since(start); took > atMost {
						t.Errorf("answered after %v, want %v at most", took, atMost)
					}
				}
				const hostile, honest = "192.0.2.1", "192.0.2.2"
				var waiting []net.Conn
				for i := range 100 {
					waiting = append(waiting, ask(hostile, fmt.Sprint(i)))
				}
				// Beside its own check there is one of the client's that has begun, and one that comes before its turn.
				check(ask(honest, "secret"), http.StatusOK, 3*checks)
				check(ask(hostile, "secret"), http.StatusOK, 2*checks)
				check(ask(honest, "wrong"), http.StatusUnauthorized, 3*checks)
				check(waiting[0], http.StatusUnauthorized, 0)
				// Requests that are given up wait no longer.
				for _, conn := range waiting {
					conn.Close()
				}
				check(ask(hostile, "last"), http.StatusUnauthorized, 2*checks)
			})
		})
	}
}

// TestPasswordsRemembered remembers right passwords, while they are right, and not any number.
func TestPasswordsRemembered(t *testing.T) {
	p := newPasswords(newConnections(1))
	for i := range 2 * maxRight {
		p.set(password{byte(i)}, true)
	}
	last := password{2*maxRight - 1}
	if len(p.right) != maxRight || !p.right[last] {
		t.Errorf("%d passwords, the last: %v", len(p.right), p.right[last])
	}
	p.set(last, false)
	if p.right[last] {
		t.Error("a wrong password is remembered")
	}
}
