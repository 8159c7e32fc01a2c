package web

import (
	"bufio"
	"net/http"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// A compressor compresses answers, one after another. Its gzip.Writer takes half of the time of that of the standard library, and keeps
// 0.3 MB for each CPU instead of 0.8 MB, for an answer that is a tenth longer.
type compressor struct {
	mu   sync.Mutex
	text *bufio.Writer // nil before the first answer
	gzip *gzip.Writer  // behind text
	size int           // of the last answer
}

// blockSize is as much as gzip.StatelessCompression compresses at once: it finds repetitions only within what one call writes.
const blockSize = 1<<15 - 1

// compress compresses in an answer what write writes.
func (c *compressor) compress(a *answer, write func(http.ResponseWriter)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gzip == nil {
		c.gzip, _ = gzip.NewWriterLevel(nil, gzip.StatelessCompression) // no error, as the level is valid
		c.text = bufio.NewWriterSize(c.gzip, blockSize)
	}
	a.body.Grow(c.size)
	c.gzip.Reset(&a.body)
	c.text.Reset(c.gzip)
	write(compressed{a, c.text})
	_ = c.text.Flush() // a bytes.Buffer has no errors
	_ = c.gzip.Close()
	c.size = a.body.Len()
	a.header.Set("Content-Encoding", "gzip")
}

// A compressed answer compresses what is written. It has the methods for which package expfmt would take a buffer of its own.
type compressed struct {
	*answer
	text *bufio.Writer
}

// Write implements http.ResponseWriter.
func (c compressed) Write(b []byte) (int, error) { return c.text.Write(b) }

// WriteString implements io.StringWriter.
func (c compressed) WriteString(s string) (int, error) { return c.text.WriteString(s) }

// WriteByte implements io.ByteWriter.
func (c compressed) WriteByte(b byte) error { return c.text.WriteByte(b) }

// WriteRune writes a rune.
func (c compressed) WriteRune(r rune) (int, error) { return c.text.WriteRune(r) }
