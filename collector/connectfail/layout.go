//go:build linux

package connectfail

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
)

// A field is the position of a value in the record, in bytes.
type field struct {
	offset, size int
}

// A layout holds the fields of the tracepoint's record that the program reads. States are numbers
// of include/net/tcp_states.h. Ports are in the byte order of the host. Addresses are IPv6 or
// IPv4-mapped, in network byte order.
type layout struct {
	socket               field // address of struct sock
	oldState, newState   field
	sourcePort, destPort field
	protocol             field
	source, dest         field
}

// fieldLine matches one field in a format file, see Documentation/trace/events.rst.
var fieldLine = regexp.MustCompile(`(?m)^\s*field:[^;]*\b(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);`)

// parseLayout parses the format file of sock:inet_sock_set_state. Offsets and the width of
// protocol differ between kernels. The error is ErrUnsupported.
func parseLayout(format string) (layout, error) {
	fields := map[string]field{}
	for _, m := range fieldLine.FindAllStringSubmatch(format, -1) {
		offset, err := strconv.Atoi(m[2])
		if err != nil {
			continue
		}
		if size, err := strconv.Atoi(m[3]); err == nil {
			fields[m[1]] = field{offset, size}
		}
	}

	var l layout
	for _, want := range []struct {
		name  string
		to    *field
		sizes []int
	}{
		{"skaddr", &l.socket, []int{4, 8}},
		{"oldstate", &l.oldState, []int{4}},
		{"newstate", &l.newState, []int{4}},
		{"sport", &l.sourcePort, []int{2}},
		{"dport", &l.destPort, []int{2}},
		{"protocol", &l.protocol, []int{1, 2}}, // 2 since Linux 5.6
		{"saddr_v6", &l.source, []int{addressSize}},
		{"daddr_v6", &l.dest, []int{addressSize}},
	} {
		f, ok := fields[want.name]
		if !ok {
			return layout{}, fmt.Errorf("%w: the record of the tracepoint has no %s", ErrUnsupported, want.name)
		}
		// The program reads addresses in parts. It reads any other field at once, so that must be
		// aligned.
		aligned := f.size == addressSize || f.size > 0 && f.offset%f.size == 0
		if !slices.Contains(want.sizes, f.size) || !aligned || f.offset+f.size > math.MaxInt16 {
			return layout{}, fmt.Errorf("%w: in the record of the tracepoint, %s has %d bytes at %d", ErrUnsupported, want.name, f.size, f.offset)
		}
		*want.to = f
	}
	return l, nil
}
