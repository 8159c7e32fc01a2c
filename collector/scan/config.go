package scan

import (
	"log/slog"
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// A Scope says which network namespaces a Scanner reads besides that of its process.
type Scope string

// The scopes.
const (
	ScopeSelf  Scope = "self"  // none
	ScopeNamed Scope = "named" // those mounted in the usual directories and Config.NamespaceDirs
	ScopeAll   Scope = "all"   // those, and that of every process
)

// Config tells a Scanner what to read.
type Config struct {
	Proc           string // mount point of procfs
	Limits         pool.Limits
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN of the kernel
	Timeout        time.Duration // for one scan
	Logger         *slog.Logger

	Scope         Scope    // the zero value is ScopeSelf
	NamespaceDirs []string // besides /run/netns and /run/docker/netns

	ConnectFailures bool // count connects that fail for want of a port
}

// othersInScope reports whether namespaces besides the process's own are read.
func (c Config) othersInScope() bool { return c.Scope == ScopeNamed || c.Scope == ScopeAll }
