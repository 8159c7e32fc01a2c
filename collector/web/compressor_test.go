package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"
)

// TestCompressor reads answers of all kinds with the standard library, as Prometheus does. One compressor makes them all.
func TestCompressor(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	kinds := map[string]func(n int) []byte{
		"zeros": func(n int) []byte { return make([]byte, n) },
		"random": func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			return b
		},
		"text": func(n int) []byte {
			words := []string{"ephemeral_port_destination_sockets{netns=\"self\",destination=\"10.0.", ".7:443\"} ", "0.", "# HELP ", "\n", "1234", "é"}
			var b bytes.Buffer
			for b.Len() < n {
				b.WriteString(words[random.IntN(len(words))])
			}
			return b.Bytes()[:n]
		},
	}
	var c compressor
	for _, n := range []int{0, 1, 100, 8 << 10, blockSize - 1, blockSize, blockSize + 1, 2 * blockSize, 2*blockSize + 1, 100_000, 3 << 20, 10} {
		for name, kind := range kinds {
			want, a := kind(n), newAnswer()
			c.compress(a, func(w http.ResponseWriter) {
				for rest := want; len(rest) > 0; {
					some := rest[:1+random.IntN(len(rest))]
					_, _ = w.Write(some)
					rest = rest[len(some):]
				}
			})
			r, err := gzip.NewReader(&a.body)
			if err != nil {
				t.Fatalf("%d bytes, %s: %v", n, name, err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %s: %d others: %v", n, name, len(got), err)
			}
		}
	}
}
