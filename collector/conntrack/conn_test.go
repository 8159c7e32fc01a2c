//go:build linux

package conntrack

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

// fakeConn returns a Conn to a fake kernel that sends these answers.
func fakeConn(t *testing.T, answer func(sockdiagtest.Request) [][]byte) *Conn {
	t.Helper()
	fd, err := sockdiagtest.Dial(answer)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(fd, make([]byte, BufferSize))
	t.Cleanup(func() { c.Close() })
	return c
}

// dial returns a Conn to the namespace of the calling thread.
func dial(tb testing.TB) *Conn {
	tb.Helper()
	c, err := Dial(make([]byte, BufferSize))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// collectFlows returns the flows of a dump.
func collectFlows(c *Conn) ([]Flow, error) {
	var flows []Flow
	err := c.Flows(func(f *Flow) { flows = append(flows, *f) })
	return flows, err
}

// answers returns a fake kernel that answers each request with these datagrams.
func answers(datagrams ...func(sockdiagtest.Request) []byte) func(sockdiagtest.Request) [][]byte {
	return func(r sockdiagtest.Request) [][]byte {
		var all [][]byte
		for _, d := range datagrams {
			all = append(all, d(r))
		}
		return all
	}
}

func rowTCP4(r sockdiagtest.Request) []byte { return row(r, tcp4) }
func rowUDP6(r sockdiagtest.Request) []byte { return row(r, udp6) }
func end(r sockdiagtest.Request) []byte     { return r.Done(0) }

// TestConnRequest checks what is sent to the kernel.
func TestConnRequest(t *testing.T) {
	asked := make(chan sockdiagtest.Request, 1)
	c := fakeConn(t, func(r sockdiagtest.Request) [][]byte {
		asked <- r
		return [][]byte{end(r)}
	})
	if err := c.Flows(func(*Flow) {}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sockdiagtest.Request{Type: 0x101, Sequence: 1, Body: []byte{0, 0, 0, 0}}, <-asked); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestConnErrors(t *testing.T) {
	tests := []struct {
		name   string
		answer func(sockdiagtest.Request) [][]byte
		want   error
		text   string
	}{
		{"nothing", answers(), os.ErrDeadlineExceeded, "receive answer"},
		{"rows without an end", answers(rowTCP4, rowUDP6), os.ErrDeadlineExceeded, "receive answer"},
		{"half a message", answers(func(r sockdiagtest.Request) []byte { return rowTCP4(r)[:100] }), ErrMalformed, "100 bytes left"},
		{"half a message after rows", answers(rowUDP6, func(r sockdiagtest.Request) []byte { return rowTCP4(r)[:100] }), ErrMalformed, "100 bytes left"},
		{"datagram beyond the buffer", answers(func(r sockdiagtest.Request) []byte {
			return slices.Repeat(rowTCP4(r), BufferSize/len(rowTCP4(r))+1)
		}), ErrMalformed, "datagram of 65536 bytes or more"},
		{"no ctnetlink", answers(func(r sockdiagtest.Request) []byte { return r.Error(unix.EINVAL) }), ErrUnsupported, "modprobe nf_conntrack_netlink"},
		{"not supported", answers(func(r sockdiagtest.Request) []byte { return r.Error(unix.EOPNOTSUPP) }), ErrUnsupported, "modprobe nf_conntrack_netlink"},
		{"no privilege", answers(func(r sockdiagtest.Request) []byte { return r.Error(unix.EPERM) }), os.ErrPermission, "CAP_NET_ADMIN"},
		{"busy", answers(func(r sockdiagtest.Request) []byte { return r.Error(unix.EBUSY) }), unix.EBUSY, "refused by the kernel: device or resource busy"},
		{"busy after rows", answers(rowTCP4, func(r sockdiagtest.Request) []byte { return r.Done(unix.EBUSY) }), unix.EBUSY, "failed in the kernel"},
		{"invalid after rows", answers(rowTCP4, func(r sockdiagtest.Request) []byte { return r.Done(unix.EINVAL) }), unix.EINVAL, "failed in the kernel"},
		{"no memory after rows", answers(rowTCP4, func(r sockdiagtest.Request) []byte { return r.Error(unix.ENOMEM) }), unix.ENOMEM, "refused by the kernel"},
		{"interrupted by a signal in the kernel", answers(rowTCP4, func(r sockdiagtest.Request) []byte { return r.Done(unix.EINTR) }), unix.EINTR, "failed in the kernel"},
		{"interrupted", answers(rowTCP4, func(r sockdiagtest.Request) []byte { return r.Message(unix.NLMSG_DONE, 0x12, native32(0)) }), ErrInterrupted, "changed during the dump"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeConn(t, tt.answer)
			timeout := time.Minute
			if errors.Is(tt.want, os.ErrDeadlineExceeded) {
				timeout = 100 * time.Millisecond
			}
			c.SetDeadline(time.Now().Add(timeout))
			_, err := collectFlows(c)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.text)
			} else if !strings.HasPrefix(err.Error(), "conntrack: dump flows: ") {
				t.Errorf("%q does not say what was tried", err)
			}
		})
	}
}

// TestCheckErrors must say what is missing.
func TestCheckErrors(t *testing.T) {
	tests := []struct {
		name   string
		answer func(sockdiagtest.Request) [][]byte
		want   error
		text   string
	}{
		{"nothing", answers(), os.ErrDeadlineExceeded, "receive answer"},
		{"end without an answer", answers(end), ErrMalformed, "end without an answer"},
		{"flows", answers(rowTCP4), ErrMalformed, "type 256"},
		{"half a message", answers(func(r sockdiagtest.Request) []byte { return r.Message(0x105, 0, make([]byte, 12))[:20] }), ErrMalformed, "20 bytes left"},
		{"no ctnetlink", answers(func(r sockdiagtest.Request) []byte { return r.Error(unix.EINVAL) }), ErrUnsupported, "modprobe nf_conntrack_netlink"},
		{"no privilege", answers(func(r sockdiagtest.Request) []byte { return r.Error(unix.EPERM) }), os.ErrPermission, "CAP_NET_ADMIN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeConn(t, tt.answer)
			timeout := time.Minute
			if errors.Is(tt.want, os.ErrDeadlineExceeded) {
				timeout = 100 * time.Millisecond
			}
			c.SetDeadline(time.Now().Add(timeout))
			err := c.Check()
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.HasPrefix(err.Error(), "conntrack: count flows: ") {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.text)
			}
		})
	}
	// CTA_STATS_GLOBAL_ENTRIES
	good := fakeConn(t, answers(func(r sockdiagtest.Request) []byte {
		return r.Message(0x105, 0, append(make([]byte, 4), attr(8, 1, 0, 0, 0, 9)...))
	}))
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}

// TestConnAllocations checks that a Conn allocates nothing for a flow or a datagram.
func TestConnAllocations(t *testing.T) {
	allocations := func(datagrams int) float64 {
		return testing.AllocsPerRun(10, func() {
			r := sockdiagtest.Request{Sequence: 1}
			rows := slices.Repeat(row(r, udp6), 10)
			fd, peer, err := sockdiagtest.Queue(append(slices.Repeat([][]byte{rows}, datagrams), r.Done(0))...)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(peer)
			c := NewConn(fd, make([]byte, BufferSize))
			defer c.Close()
			flows := 0
			if err := c.Flows(func(*Flow) { flows++ }); err != nil || flows != 10*datagrams {
				t.Fatalf("%d flows, %v", flows, err)
			}
		})
	}
	if few, many := allocations(1), allocations(20); many != few {
		t.Errorf("%v allocations for a datagram, %v for 20", few, many)
	}
}
