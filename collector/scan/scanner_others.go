//go:build !linux

package scan

import (
	"context"
	"fmt"
	"runtime"
)

// A Scanner makes Snapshots of a Linux host.
type Scanner struct{}

// New returns an error: a Scanner needs Linux.
func New(Config) (*Scanner, error) {
	return nil, fmt.Errorf("scan: this program needs Linux, it reads sockets over netlink; this system is %s", runtime.GOOS)
}

// Check panics. There is no Scanner to call it.
func (*Scanner) Check() (Snapshot, error) { panic("scan: no Scanner") }

// Scan panics. There is no Scanner to call it.
func (*Scanner) Scan(context.Context) Snapshot { panic("scan: no Scanner") }

// Port panics. There is no Scanner to call it.
func (*Scanner) Port(context.Context, uint16) (Port, error) { panic("scan: no Scanner") }

// DropCapabilities panics. There is no Scanner to call it.
func (*Scanner) DropCapabilities(bool) error { panic("scan: no Scanner") }
