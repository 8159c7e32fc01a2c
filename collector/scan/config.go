package scan

import (
	"log/slog"
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// A Scope says which network namespaces a Scanner reads besides the one of its process.
type Scope string

// The scopes.
const (
	ScopeSelf  Scope = "self"  // none
	ScopeNamed Scope = "named" // those mounted in the usual directories and Config.NamespaceDirs
	ScopeAll   Scope = "all"   // those of ScopeNamed, and those of all processes
)

// DefaultPodLogs is where kubelet has the logs of its pods, unless it is told otherwise.
const DefaultPodLogs = "/var/log/pods"

// Config tells a Scanner what to read.
type Config struct {
	Proc           string // mount point of procfs
	Cgroup         string // mount point of cgroup2, or the directory that has it in unified
	PodLogs        string // directory of kubelet, which has the names of pods; empty for none
	Limits         pool.Limits
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN of the kernel
	Timeout        time.Duration // for one scan
	Logger         *slog.Logger

	Scope         Scope    // the zero value is ScopeSelf
	NamespaceDirs []string // besides /run/netns and /run/docker/netns

	// NamespaceLimit is how many other namespaces are entered in one scan: those that were
	// busy, then those that have not been for longest.
	NamespaceLimit int

	// Exact lists sockets with a BPF iterator, which knows which ports are bound and which
	// connections used timestamps.
	Exact bool

	// Trials finds out in a network namespace of its own what neither version nor sysctl tells of the
	// kernel, if the process has CAP_SYS_ADMIN when New is called.
	Trials bool

	Trace bool // count connects and binds that fail because no port is free, and connections that this host closes first

	SNAT      bool             // count the ports of source NAT
	SNATPorts []pool.PortRange // that its rules choose from
	BPFFS     string           // mount point of the BPF file system in which Cilium has its maps; if empty, nobody asks for these

	NodePorts []pool.PortRange // of Kubernetes, see pool.Settings; Cilium's source NAT has the ports above the highest

	// SNATTakeover says that the kernel takes over the ports of closed flows although its release is
	// older than that, see snat.Settings.
	SNATTakeover bool
}

// othersInScope reports whether the scope has namespaces besides the process's own.
func (c Config) othersInScope() bool { return c.Scope == ScopeNamed || c.Scope == ScopeAll }

// A PermanentError lasts until somebody changes the host or the flags: to start again is of no use.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

func (e *PermanentError) Unwrap() error { return e.Err }
