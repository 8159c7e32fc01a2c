//go:build linux

package scan

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/sockdiag"
)

// TestPermanent distinguishes errors of every scan from errors that may not happen again.
func TestPermanent(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"nothing", nil, ""},
		{"deadline", os.ErrDeadlineExceeded, ""},
		{"interrupted", sockdiag.ErrInterrupted, ""},
		{"too many files", unix.EMFILE, ""},
		{"no tcp_diag", fmt.Errorf("%w: tcp_diag is not loaded (%w)", sockdiag.ErrUnsupported, unix.ENOENT), "this host cannot be watched: not supported"},
		{"absent file", fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: "/x", Err: unix.ENOENT}), "cannot be watched, --path.procfs=/x must be"},
		{"unreadable file", fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: "/x", Err: unix.EACCES}), "this host cannot be watched: procfs: open /x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := explain(tt.err, "/x")
			if tt.want == "" && got != nil || tt.want != "" && (got == nil || !strings.Contains(got.Error(), tt.want)) {
				t.Errorf("got %v, want %q", got, tt.want)
			}
		})
	}
}
