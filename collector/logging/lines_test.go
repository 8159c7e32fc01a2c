package logging

import (
	"errors"
	"testing"
)

// A disk has place for some bytes.
type disk struct {
	content string
	free    int
}

// Write implements io.Writer.
func (d *disk) Write(b []byte) (int, error) {
	n := min(len(b), d.free)
	d.content += string(b[:n])
	if d.free -= n; n < len(b) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

// TestLines checks that the first line on a disk that has place again begins at the left.
func TestLines(t *testing.T) {
	d := &disk{}
	w := Lines(d)
	for _, tt := range []struct {
		free int
		line string
		ok   bool
	}{
		{0, "lost\n", false}, {10, "first\n", true}, {0, "torn line\n", false}, {0, "lost\n", false},
		{4, "torn too\n", false}, {100, "last\n", true}, {0, "end\n", true},
	} {
		d.free += tt.free
		n, err := w.Write([]byte(tt.line))
		if (err == nil) != tt.ok || (n == len(tt.line)) != tt.ok {
			t.Errorf("%q: %d, %v", tt.line, n, err)
		}
	}
	if want := "first\ntorn\ntor\nlast\nend\n"; d.content != want {
		t.Errorf("got %q, want %q", d.content, want)
	}
}
