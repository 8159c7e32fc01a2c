package web

import "net/http"

// refuseBodies refuses requests that have a body: none needs one. It closes the connection after them, and after
// requests of HTTP/1.0.
//
// If a request has both Content-Length and Transfer-Encoding, or has the latter in HTTP/1.0, a proxy may take another
// part of what follows for the next request than http.Server does, which does not tell about the header that it
// ignores. See RFC 9112, sections 6.1 and 11.2.
func refuseBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := r.ContentLength != 0
		if body || !r.ProtoAtLeast(1, 1) {
			w.Header().Set("Connection", "close")
		}
		if body {
			http.Error(w, "a request must not have a body: send it without Content-Length and Transfer-Encoding", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
