//go:build linux

package nlconn

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

var testRequest = sockdiagtest.Request{Type: 20, Sequence: 7}

func TestNextErrors(t *testing.T) {
	r := testRequest
	row := r.Message(20, 0, []byte{1, 2, 3, 4})
	length := func(n byte) []byte { return append([]byte{n, 0, 0, 0}, row[4:]...) }
	tests := []struct {
		name string
		b    []byte
		want error
		text string
	}{
		{"one byte", row[:1], ErrMalformed, "1 bytes, expected a message header of 16"},
		{"half a header", row[:15], ErrMalformed, "15 bytes, expected a message header of 16"},
		{"length 0", length(0), ErrMalformed, "message length 0,"},
		{"length less than the header", length(15), ErrMalformed, "message length 15,"},
		{"length more than the datagram", length(21), ErrMalformed, "message length 21, 20 bytes left"},
		{"length near 4 GiB", append([]byte{255, 255, 255, 255}, row[4:]...), ErrMalformed, "message length 4294967295,"},
		{"another request", sockdiagtest.Request{Sequence: 6}.Done(0), ErrMalformed, "sequence number 6, sent 7"},
		{"interrupted", r.Message(20, unix.NLM_F_DUMP_INTR, nil), ErrInterrupted, "changed during the dump"},
		{"interrupted at the end", r.Message(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, make([]byte, 4)), ErrInterrupted, "changed during the dump"},
		{"overrun", r.Message(unix.NLMSG_OVERRUN, 0, nil), ErrInterrupted, "lost messages"},
		{"end without code", r.Message(unix.NLMSG_DONE, 0, []byte{0, 0, 0}), ErrMalformed, "error code of 3 bytes"},
		{"error without code", r.Message(unix.NLMSG_ERROR, 0, nil), ErrMalformed, "error code of 0 bytes"},
		{"acknowledgement", r.Error(0), ErrMalformed, "acknowledgement"},
		{"refused", r.Error(unix.EPERM), unix.EPERM, "refused by the kernel: operation not permitted"},
		{"failed", r.Done(unix.ENOMEM), unix.ENOMEM, "failed in the kernel: cannot allocate memory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, _, err := next(tt.b, 7); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestNext(t *testing.T) {
	r := testRequest
	// There is padding behind the first, but none at the end.
	b := slices.Concat(r.Message(20, 0, []byte{1, 2, 3, 4, 5}), r.Message(unix.NLMSG_NOOP, 0, nil), r.Done(0), r.Message(20, 0, []byte{6})[:17])
	for _, want := range []struct {
		typ  netlink.HeaderType
		body []byte
	}{
		{20, []byte{1, 2, 3, 4, 5}},
		{netlink.Noop, nil},
		{netlink.Done, []byte{0, 0, 0, 0}},
		{20, []byte{6}},
	} {
		typ, body, rest, err := next(b, 7)
		if err != nil || typ != want.typ || !bytes.Equal(body, want.body) {
			t.Fatalf("got type %d, %v, %v, want %d, %v", typ, body, err, want.typ, want.body)
		}
		b = rest
	}
	if len(b) != 0 {
		t.Errorf("%v is left", b)
	}
}

// findAttr does what Attr does, by NextAttr.
func findAttr(b []byte, want uint16) ([]byte, error) {
	for len(b) > 0 {
		typ, value, rest, ok := NextAttr(b)
		if !ok {
			return nil, AttrError(b)
		}
		if typ == want {
			return value, nil
		}
		b = rest
	}
	return nil, nil
}

func TestAttr(t *testing.T) {
	b := []byte{5, 0, 1, 0, 9, 0, 0, 0, 6, 0, 2, 0x80, 7, 8} // the second is nested and without padding
	tests := []struct {
		name string
		b    []byte
		typ  uint16
		want []byte
		text string
	}{
		{"header truncated", b[:3], 1, nil, "3 bytes, expected an attribute"},
		{"length 0", []byte{0, 0, 1, 0}, 1, nil, "attribute length 0, 4 bytes left"},
		{"length less than the header", []byte{3, 0, 1, 0}, 1, nil, "attribute length 3, 4 bytes left"},
		{"too long", b[:13], 2, nil, "attribute length 6, 5 bytes left"},
		{"nothing", nil, 1, nil, ""},
		{"empty", []byte{4, 0, 1, 0}, 1, []byte{}, ""},
		{"behind an empty one", []byte{4, 0, 1, 0, 5, 0, 2, 0, 9}, 2, []byte{9}, ""},
		{"first", b, 1, []byte{9}, ""},
		{"last", b, 2, []byte{7, 8}, ""},
		{"absent", b, 3, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, find := range map[string]func([]byte, uint16) ([]byte, error){"Attr": Attr, "NextAttr": findAttr} {
				got, err := find(tt.b, tt.typ)
				if (tt.text == "") != (err == nil) || err != nil && (!errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.text)) {
					t.Errorf("%s: got %v, want an error that says %q", name, err, tt.text)
				}
				if !bytes.Equal(got, tt.want) {
					t.Errorf("%s: got %v, want %v", name, got, tt.want)
				}
			}
		})
	}
}
