//go:build linux

package scan

import (
	"errors"
	"strconv"
	"strings"
)

// cookiePrefix begins the label of a namespace without a name of its own. The kernel's
// cookie follows, which no other namespace ever gets.
const cookiePrefix = "netns-"

// errNoCookie means that a namespace without a mount gets no label.
var errNoCookie = errors.New("network namespace without a name: this kernel has no cookie for it (Linux 5.14)")

// assignLabels gives each namespace its label: the one of the last scan; else the name of
// its mount, unless another has it or it could be taken for one of ours; else one made of
// the cookie, or none without. So a label does not pass from one namespace to another
// while both exist.
func (s *Scanner) assignLabels(candidates []candidate) {
	taken := map[string]bool{Self: true}
	labels := map[uint64]string{}
	for i := range candidates {
		c := &candidates[i]
		if label := s.labels[c.cookie]; c.cookie != 0 && label != "" {
			c.Name = label
			taken[label] = true
			labels[c.cookie] = label
		}
	}
	for i := range candidates {
		c := &candidates[i]
		if c.Name != "" {
			continue
		}
		c.Name = newLabel(c.found.Name, c.cookie, taken)
		taken[c.Name] = true
		if c.cookie != 0 {
			labels[c.cookie] = c.Name
		}
	}
	s.labels = labels
}

// newLabel chooses the label of a namespace that has none yet.
func newLabel(mount string, cookie uint64, taken map[string]bool) string {
	name := strings.ToValidUTF8(mount, "\uFFFD")
	if name != "" && !taken[name] && !strings.HasPrefix(name, cookiePrefix) {
		return name
	}
	if cookie == 0 {
		return ""
	}
	return cookiePrefix + strconv.FormatUint(cookie, 10)
}
