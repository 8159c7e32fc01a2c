package tcpstate

import (
	"strings"
	"testing"
)

func TestString(t *testing.T) {
	var got []string
	for s := range State(13) {
		got = append(got, s.String())
	}
	const want = "unknown established syn_sent syn_recv fin_wait1 fin_wait2 time_wait close close_wait last_ack listen closing unknown"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
