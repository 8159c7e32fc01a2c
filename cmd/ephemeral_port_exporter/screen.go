package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
)

// A screen is where --status prints.
type screen struct {
	out     *os.File
	watched bool // pages follow each other
	live    bool // each page replaces the last one
	ascii   bool // it may not know other characters
	drawn   bool // there was a page
}

// newScreen returns a screen for a file, where the environment says what the terminal can. Pages replace each other if that
// can clear itself. They have other characters than ASCII if it can do that and the locale is one of UTF-8.
func newScreen(out *os.File, env func(string) string, watched bool) *screen {
	term := env("TERM")
	able := term != "" && term != "dumb"
	return &screen{out: out, watched: watched, live: watched && isTerminal(out) && able, ascii: !able || !isUTF8(env)}
}

// isUTF8 reports whether the locale has the characters of UTF-8, see locale(7).
func isUTF8(env func(string) string) bool {
	locale := strings.ToLower(cmp.Or(env("LC_ALL"), env("LC_CTYPE"), env("LANG")))
	return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
}

// Sizes of what has none: of a terminal that does not say its own, such as a serial line, and of a file that is watched.
const (
	defaultColumns = 80
	defaultLines   = 24
)

// Control sequences of ECMA-48 that all terminals know which can clear themselves.
const (
	cursorHome = "\x1b[H"
	eraseBelow = "\x1b[J"
)

// draw prints the page of a snapshot. It has the width of the terminal. If others follow, it has the height too.
func (s *screen) draw(page *status.Status, snapshot *scan.Snapshot, v status.View) error {
	columns, lines, isTerminal := terminalSize(s.out)
	v.ASCII = s.ascii
	switch {
	case isTerminal:
		v.Columns = columns
	case s.watched:
		v.Columns = defaultColumns
	}
	var b bytes.Buffer
	if err := page.Write(&b, snapshot, v); err != nil {
		return err
	}
	text := b.Bytes()
	if v.Format == status.Text {
		if s.watched && isTerminal {
			text = fit(text, columns, lines-1) // the cursor has the last line
		}
		switch {
		case s.live:
			text = append([]byte(cursorHome+eraseBelow), text...)
		case s.drawn:
			text = append([]byte("\n"), text...)
		}
	}
	s.drawn = true
	if _, err := s.out.Write(text); err != nil { // at once, so that it does not flicker
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}

// fit returns the first lines of a text that have room in so many lines of a terminal. The last of these says how many more
// there are.
func fit(text []byte, columns, lines int) []byte {
	all := bytes.SplitAfter(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	rows, kept := 0, 0 // kept has room together with the last line
	for i, line := range all {
		rows += max((utf8.RuneCount(bytes.TrimSuffix(line, []byte("\n")))+columns-1)/columns, 1)
		if rows < lines {
			kept = i + 1
		}
	}
	if rows <= lines {
		return text
	}
	return fmt.Appendf(bytes.Join(all[:kept], nil), "%d more lines: see --status without --watch\n", len(all)-kept)
}

// isTerminal reports whether a file is a terminal.
func isTerminal(f *os.File) bool {
	_, _, ok := terminalSize(f)
	return ok
}

// terminalSize returns the size of the terminal that a file is. ok is false if it is none.
func terminalSize(f *os.File) (columns, lines int, ok bool) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	columns, lines = int(size.Col), int(size.Row)
	if columns == 0 || lines == 0 {
		columns, lines = defaultColumns, defaultLines
	}
	return columns, lines, true
}
