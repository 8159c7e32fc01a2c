package scan

import (
	"cmp"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
)

// Self is the Name of the exporter's own network namespace.
const Self = "self"

// A Snapshot is the result of one scan. It is never changed.
type Snapshot struct {
	Time       time.Time   // when the scan ended, also by the monotonic clock
	Namespaces []Namespace // the process's own first
	OthersRead bool        // other namespaces were in scope

	// Elsewhere counts the TCP sockets of the host that are not in our own namespace, or that have no port. It is 0 if OthersRead, or if
	// that is not known.
	Elsewhere int

	// DiscoveryFailures counts the directories, or other sources of namespaces, that could
	// not be read completely: some namespaces may be missing. DiscoveryErr is the first of these.
	DiscoveryFailures int
	DiscoveryErr      error

	Trace *Trace // nil unless they are counted

	// Cgroups are the control groups that own ports, by their numbers. It is nil if
	// the host has no cgroup2 file system, so that they have no paths.
	Cgroups    map[uint64]cgroup.Group
	CgroupsErr error // set if some of them have no path because the search was not complete
}

// A Result says how a source of numbers about a namespace was read. It is zero if there is nothing to
// read: the source is absent or empty, or nobody asked.
type Result struct {
	Outcome Outcome
	Err     error // why the numbers are not known; nil if Collected or Idle, and if Skipped without a sign that ports are in use
}

// An Outcome is the result of reading one source.
type Outcome string

// The outcomes.
const (
	Collected   Outcome = "collected"   // all was read
	Idle        Outcome = "idle"        // there is too little for any pool to matter; it was not read
	Failed      Outcome = "failed"      // it could not be read
	Deadline    Outcome = "deadline"    // there was not enough time to read it
	Skipped     Outcome = "skipped"     // not read, because others were before it: its turn comes
	Unsupported Outcome = "unsupported" // of UDP: this kernel cannot list it, and never will
)

// Outcomes lists those of the TCP sockets of a namespace.
var Outcomes = [...]Outcome{Collected, Idle, Failed, Deadline, Skipped}

// A Namespace is the result of a scan for one network namespace. Each source has its own Result: the
// failure of one says nothing about the others.
type Namespace struct {
	Name     string // the label; empty if it has none
	Inode    uint64 // 0 if no other namespaces are in scope
	Path     string // by which it can be entered, see netns.Namespace; empty for our own
	Workload Workload

	TCP       TCP
	UDP       UDP
	TimeWait  TimeWait
	Conntrack Conntrack
	NAT       NAT
	Cilium    Cilium
}

// TCP is what is known of the TCP sockets of a namespace. Its outcome is that of the namespace.
type TCP struct {
	Result
	Report   pool.Report   // known if Collected, like the fields below
	Duration time.Duration // of reading it

	// TimestampsErr says why it is not known of some destinations whether they use TCP timestamps. What cannot
	// be taken over without them counts as held in the Report.
	TimestampsErr error

	// CutShort means that more is not known because the time of the scan was over, with no error that says so: whether
	// connect() takes over ports in FIN_WAIT2, on which ports UDP has servers, or the command of the namespace.
	CutShort bool
}

// A TimeWait is what the kernel counts of the sockets in TIME_WAIT of a namespace. It is zero where the
// TCP sockets could not be read.
type TimeWait struct {
	Result
	Sockets   int    // on any port; known if Collected or Idle
	Limit     int    // sysctl tcp_max_tw_buckets; known if Collected, like the field below
	Overflows uint64 // TCPTimeWaitOverflow

	// Recent counts those of Overflows within Window until now. Window is 0 if that is not known, at the first scan.
	Recent uint64
	Window time.Duration
}

// UDP is what is known of the UDP sockets of a namespace.
type UDP struct {
	Result
	Report  pool.UDPReport // known if Collected
	Sockets int            // on any port; also known if Idle or Unsupported
}

// A Conntrack is what the kernel counts about the tracked flows of a namespace, which needs no
// privilege. It is zero in namespaces that are idle, and where the kernel tracks no flows.
type Conntrack struct {
	Result
	Entries int // flows; known if Collected, like the fields below
	Limit   int // of flows; 0 if there is none, or if it is hidden

	// The counters are not known without CONFIG_NF_CONNTRACK_PROCFS. They begin at the kernel's sum of counters
	// of 32 bits, one for each CPU, and lose nothing when one of these begins anew.
	Counted      bool
	InsertFailed uint64 // first packets of flows that were dropped because NAT had no free port, or lost a race for it
	Dropped      uint64 // packets that were dropped because of that, or because the table was full
	EarlyDropped uint64 // flows that gave way to new ones because the table was full
}

// A NAT tells how the ports of source NAT are used in a namespace. It is zero where no flows are tracked, if Cilium has none either,
// in other namespaces that track few, and if nobody asked for it.
type NAT struct {
	Result
	Report   snat.Report   // known if Collected
	Duration time.Duration // of reading the flows
}

// Cilium is what is known of its source NAT, which leaves no flows in connection tracking. It is that of the host, so only our own
// namespace has it.
type Cilium struct {
	Result      // of reading the maps of its source NAT, zero if nobody asked for it; if Collected, its pools are in the Report of NAT
	Found  bool // it runs here; it may leave source NAT to the kernel

	// Unassigned counts the connections that got no port, if Collected. It begins at what the datapath has counted, and falls if that is
	// cleared. It is known if Counted: not before Cilium 1.18, nor where it has no source NAT.
	Counted    bool
	Unassigned uint64

	Lately bool // Unassigned rose in the last 5 minutes
}

// A Workload is what a namespace belongs to. Unknown fields are empty.
type Workload struct {
	cgroup.Workload        // of the process of Command, else of its first process, but no container of a pod
	Command         string // of a process that had most sockets while the namespace was busy, until it ends; see proc_pid_comm(5)
}

// A Group is a control group.
type Group = cgroup.Group

// An Owner is a control group that holds ports of a pool.
type Owner struct {
	cgroup.Group
	Ports int // held by its sockets that are not in TIME_WAIT
}

// Unsure reports whether utilization may be higher than is known, so much that it matters. Another scan may tell.
func (s Snapshot) Unsure() bool {
	return slices.ContainsFunc(s.Namespaces, func(n Namespace) bool {
		r := &n.TCP.Report
		return r.MaxPossibleUtilization >= r.MaxUtilization+0.01
	})
}

// CutShort reports whether something is not known because the time of the scan was over: one with more time may tell.
func (s Snapshot) CutShort() bool {
	errs := []error{s.CgroupsErr}
	if s.Trace != nil {
		errs = append(errs, s.Trace.Err, s.Trace.CgroupsErr)
	}
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		if n.TCP.CutShort {
			return true
		}
		errs = append(errs, n.TCP.Err, n.TCP.TimestampsErr, n.UDP.Err, n.NAT.Err)
	}
	return slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) })
}

// MissingPaths returns why some control groups, of owners or of failed connects, have no path. It is nil if the search was complete.
func (s Snapshot) MissingPaths() error {
	if s.Trace == nil {
		return s.CgroupsErr
	}
	return cmp.Or(s.CgroupsErr, s.Trace.CgroupsErr)
}

// Resolve returns owners of a report of the snapshot, at most pool.MaxOwners.
// Control groups with the same path are one owner: the older ones are removed, and still have sockets.
func (s Snapshot) Resolve(of []pool.Owner) []Owner {
	if s.Cgroups == nil {
		return nil
	}
	var owners []Owner
	for _, o := range of {
		group := s.Cgroups[o.Cgroup]
		i := slices.IndexFunc(owners, func(other Owner) bool { return other.Group == group })
		if i < 0 {
			owners = append(owners, Owner{Group: group})
			i = len(owners) - 1
		}
		owners[i].Ports += o.Ports
	}
	return owners
}

// A Trace is what the kernel tells as it happens, in all network namespaces of the host, since New: the connects, and the
// binds, that failed because no port was free, and the connections that this host closed first. Each connect is in one of
// Pools, Unattributed and Expired.
type Trace struct {
	Err          error // set if they could not be read: then the other fields are not known
	Pools        []FailedPool
	Unattributed uint64 // failures in pools that were not listed then; never falls
	Expired      uint64 // failures in pools that were listed then, and are no more; never falls

	// The same of binds, if the kernel can tell. Both share the limits.
	BindsCounted                    bool
	Binds                           []FailedBind
	BindsUnattributed, BindsExpired uint64

	// The same of closes, if the kernel can tell. They have limits of their own.
	ClosesCounted                     bool
	Closes                            []ClosedPool
	ClosesUnattributed, ClosesExpired uint64

	// Window is how long before now Recent of each pool begins: at the latest scan that was longer ago than a port is in TIME_WAIT,
	// or at the start of the exporter.
	Window time.Duration

	CgroupsErr error // set if some control groups have no path because the search was not complete

	TableUtilization       float64 // of the kernel's table of pools; 1: further pools are unattributed
	ClosesTableUtilization float64 // of the table of pools with closes
	ReclaimErr             error   // set if slots of these tables could not be freed
	MissedRuns             uint64  // how often the kernel skipped a program that counts; never falls
	MissedRunsKnown        bool    // false before Linux 6.1, and with MissedRunsErr
	MissedRunsErr          error   // set if they could not be read
}

// A FailedBind is an address whose binds to any port failed because none was free, by control group. It is listed like a
// FailedPool. It has no destination: that is not known before the socket connects.
type FailedBind struct {
	Netns    string       // as of FailedPool
	Cgroup   cgroup.Group // of the caller
	Source   netip.Addr   // without a zone; unspecified if the caller named none
	UDP      bool         // else of TCP
	Failures uint64       // while it is listed; never falls
	Last     Process
}

// Protocol returns the name that all formats use.
func (b *FailedBind) Protocol() string {
	if b.UDP {
		return "udp"
	}
	return "tcp"
}

// A FailedPool is a pool in which connects failed, by control group. It is listed until none failed
// for 15 minutes, or until others need its place.
type FailedPool struct {
	Netns       string         // the label of the network namespace; empty if that is not known
	Cgroup      cgroup.Group   // of the caller
	Source      netip.Addr     // without a zone
	Destination netip.AddrPort // without a zone
	Failures    uint64         // while it is listed; never falls
	Recent      uint64         // those within Trace.Window
	Last        Process
}

// A ClosedPool is a pool in which a control group closed connections first, so that they wait here in TIME_WAIT.
// It is listed from the first scan on that has the pool as a destination, until it had no closes for 15 minutes, or until others need
// its place. A pool that has no series is listed while it has recent closes.
type ClosedPool struct {
	Netns       string         // as of FailedPool
	Cgroup      cgroup.Group   // of the process that opened the connections; before Linux 5.15, of the one that closed
	Source      netip.Addr     // without a zone
	Destination netip.AddrPort // without a zone
	Closes      uint64         // since it has series; never falls. It is 0 for a pool without series, whose closes are unattributed.
	Recent      uint64         // those within Trace.Window, from when on it is listed
	Last        Process
}

// A Process is the last one of a control group that did something to a pool. It is zero if not known.
type Process struct {
	Command string // see proc_pid_comm(5)
	PID     int    // in the initial PID namespace
}
