package scan

import (
	"net/netip"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/pool"
)

// Self is the Name of the exporter's own network namespace.
const Self = "self"

// A Snapshot is what one scan found. It is a plain value that nobody changes.
type Snapshot struct {
	Namespaces []Namespace // the process's own first
	OthersRead bool        // other namespaces were in scope

	// DiscoveryFailures counts the directories and kinds of places that could not be
	// searched for namespaces: some may be missing.
	DiscoveryFailures int

	ConnectFailures *ConnectFailures // nil unless they are counted
}

// An Outcome says what became of a namespace in a scan.
type Outcome string

// The outcomes.
const (
	Collected Outcome = "collected" // its sockets were read
	Idle      Outcome = "idle"      // it has too few sockets for any pool to matter; they were not read
	Failed    Outcome = "failed"    // it could not be read
	Deadline  Outcome = "deadline"  // the time for the scan was over before
)

// Outcomes lists all of them.
var Outcomes = [...]Outcome{Collected, Idle, Failed, Deadline}

// A Namespace is what a scan says of one network namespace.
type Namespace struct {
	Name    string // the label; empty if it failed before it got one
	Inode   uint64 // 0 where no other namespaces are in scope
	Owner   Owner
	Outcome Outcome
	Err     error // if Failed or Deadline; then nothing below is known

	// If Idle, of these only TimeWaitSockets is known.
	Report            pool.Report
	TimeWaitSockets   int    // on any port
	TimeWaitOverflows uint64 // TCPTimeWaitOverflow
	Duration          time.Duration
}

// An Owner tells whose a namespace is. What is not known is empty.
type Owner struct {
	cgroup.Owner        // of its processes
	Command      string // of the process with most sockets, once the namespace was not idle; see proc_pid_comm(5)
}

// fail makes a Namespace of which nothing is known but why.
func (n Namespace) fail(err error, outcome Outcome) Namespace {
	return Namespace{Name: n.Name, Inode: n.Inode, Owner: n.Owner, Outcome: outcome, Err: err}
}

// ConnectFailures are the connects that failed for want of a port, in all network
// namespaces of the host, since the Scanner was made.
type ConnectFailures struct {
	Err          error // if they could not be read; then nothing else is known
	Pools        []FailedPool
	Unattributed uint64 // failures in pools that are not listed
}

// A FailedPool is a pool in which connects failed.
type FailedPool struct {
	Source      netip.Addr     // without a zone
	Destination netip.AddrPort // without a zone
	Failures    uint64         // never falls
}
