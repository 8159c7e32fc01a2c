package logging

import "io"

// Lines returns a writer of lines to w. If w takes a line only in part, as a disk that gets full does, the
// next one does not continue it.
func Lines(w io.Writer) io.Writer { return &lines{w: w} }

type lines struct {
	w    io.Writer
	torn bool // w ends with a part of a line
}

// Write implements io.Writer. It expects one line.
func (l *lines) Write(line []byte) (int, error) {
	if l.torn {
		if _, err := l.w.Write([]byte("\n")); err != nil {
			return 0, err
		}
		l.torn = false
	}
	n, err := l.w.Write(line)
	l.torn = n > 0 && n < len(line)
	return n, err
}
