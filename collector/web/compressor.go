package web

import (
	"bufio"
	"net/http"

	"github.com/klauspost/compress/gzip"
)

// A compressor compresses answers, one after another. Its gzip.Writer takes half of the time of that of the standard library, for an answer
// that is up to a tenth longer. Both keep 0.5 to 0.8 MB; promhttp would have one of 0.8 MB for each CPU.
type compressor struct {
	text *bufio.Writer // nil before the first answer
	gzip *gzip.Writer  // behind text
}

// blockSize is as much as gzip.StatelessCompression compresses at once: it finds repetitions only within what one call writes.
const blockSize = 1<<15 - 1

// usualSize is what an answer of a host with few destinations takes.
const usualSize = 8 << 10

// compress compresses in an answer what write writes.
func (c *compressor) compress(a *answer, write func(http.ResponseWriter)) {
	if c.gzip == nil {
		c.gzip, _ = gzip.NewWriterLevel(nil, gzip.StatelessCompression) // no error, as the level is valid
		c.text = bufio.NewWriterSize(c.gzip, blockSize)
	}
	a.body.Grow(usualSize)
	c.gzip.Reset(&a.body)
	c.text.Reset(c.gzip)
	write(compressed{a, c.text})
	_ = c.text.Flush() // a bytes.Buffer has no errors
	_ = c.gzip.Close()
	c.gzip.Reset(nil) // it would hold the answer until the next one
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
