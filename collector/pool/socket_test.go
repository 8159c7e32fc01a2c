package pool

import (
	"strings"
	"testing"
)

func TestStateString(t *testing.T) {
	want := "established syn_sent syn_recv fin_wait1 fin_wait2 time_wait close_wait last_ack closing unknown"
	var got []string
	for _, s := range append(States[:], 7) {
		got = append(got, s.String())
	}
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
