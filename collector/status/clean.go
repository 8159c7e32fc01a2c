package status

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// How many characters are shown of a name and of an error. A path can have 4096.
const (
	maxName     = 60
	maxSentence = 400
)

// A cleaner makes text of the kernel safe to show: names of commands, mounts and control groups are
// chosen by anyone on the host. It writes the characters that are not safe as in Go's string literals.
type cleaner struct{ safe func(rune) bool }

// visible is for HTML. Control characters, terminal escapes, characters that change the direction of
// text and those that are drawn over others are not safe.
var visible = cleaner{isVisible}

// ascii is for terminals, which may not know other characters or show them wider.
var ascii = cleaner{func(r rune) bool { return r >= ' ' && r <= '~' }}

// cleanerOf returns the cleaner for a format. In JSON, sentences are as in HTML.
func cleanerOf(f Format) cleaner {
	if f == Text {
		return ascii
	}
	return visible
}

// name returns a name as it is shown. It cuts the middle out of a long one.
func (c cleaner) name(s string) string { return shorten(escape(s, c.safe), maxName) }

// sentence returns the text of an error as it is shown.
func (c cleaner) sentence(s string) string { return shorten(escape(s, c.safe), maxSentence) }

// isVisible reports whether a character shows as itself, beside its neighbours and not over them.
func isVisible(r rune) bool { return strconv.IsPrint(r) && !unicode.Is(unicode.M, r) }

// escape writes all characters as in Go's string literals for which keep is false.
func escape(s string, keep func(rune) bool) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if invalid := r == utf8.RuneError && size == 1; invalid || !keep(r) {
			quoted := strconv.QuoteToASCII(s[i : i+size])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
		i += size
	}
	return b.String()
}

// shorten cuts the middle out of a long name: beginnings are often alike.
func shorten(s string, most int) string {
	runes := []rune(s)
	if len(runes) <= most {
		return s
	}
	const tail = 20
	return string(runes[:most-tail-3]) + "..." + string(runes[len(runes)-tail:])
}

// isPlain reports whether a name can be put into a command, in any terminal.
func isPlain(name string) bool { return name == escape(name, ascii.safe) }
