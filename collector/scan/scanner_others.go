//go:build !linux

package scan

import (
	"context"
	"fmt"
	"runtime"
)

// A Scanner makes Snapshots of a Linux host.
type Scanner struct{}

// New returns an error: only Linux has what a Scanner reads.
func New(Config) (*Scanner, error) {
	return nil, fmt.Errorf("scan: this program needs Linux and runs on %s: its sockets are read over netlink", runtime.GOOS)
}

// Check is not called.
func (*Scanner) Check() (Namespace, error) { panic("scan: no Scanner") }

// Scan is not called.
func (*Scanner) Scan(context.Context) Snapshot { panic("scan: no Scanner") }
