//go:build linux

package scan

import (
	"errors"
	"strconv"
	"strings"
)

// cookiePrefix is the start of the label of a namespace without a name of its own. The rest is
// the kernel's cookie, which no other namespace ever gets.
const cookiePrefix = "netns-"

// errNoCookie means that a namespace gets no label, because it has neither a usable name nor a
// cookie.
var errNoCookie = errors.New("network namespace has no label: it has no unique name, and kernels before Linux 5.14 have no cookie for it")

// assignLabels sets the label of each namespace. A namespace keeps the label that it has got
// once. So a label does not move from one namespace to another while both exist. A new namespace
// gets the label of newLabel.
func assignLabels(candidates []candidate) {
	taken := map[string]bool{Self: true}
	for i := range candidates {
		c := &candidates[i]
		c.Name = c.known.label
		taken[c.Name] = true
	}
	for i := range candidates {
		c := &candidates[i]
		if c.Name != "" {
			continue
		}
		c.Name = newLabel(c.found.Name, c.cookie, taken)
		taken[c.Name] = true
		if c.cookie != 0 {
			c.known.label = c.Name
		}
	}
}

// newLabel returns the label for a new namespace: the name of its mount, unless that is taken or
// begins with cookiePrefix; else one made of the cookie; else "".
func newLabel(mount string, cookie uint64, taken map[string]bool) string {
	name := strings.ToValidUTF8(mount, "\uFFFD")
	if name != "" && !taken[name] && !strings.HasPrefix(name, cookiePrefix) {
		return name
	}
	return cookieLabel(cookie)
}

// cookieLabel returns the label of a namespace that has no name. It is empty if cookie is 0.
func cookieLabel(cookie uint64) string {
	if cookie == 0 {
		return ""
	}
	return cookiePrefix + strconv.FormatUint(cookie, 10)
}

// labelOf returns the label of the namespace with that cookie, which need not be in scope. self is
// the cookie of our own.
func (s *Scanner) labelOf(cookie, self uint64) string {
	if cookie != 0 && cookie == self {
		return Self
	}
	if k, ok := s.known[cookie]; ok && k.label != "" {
		return k.label
	}
	return cookieLabel(cookie)
}
