package collector

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/sockdiag"
)

// A Scope says which network namespaces a Collector reads, besides that of its process.
type Scope string

// The scopes.
const (
	ScopeSelf  Scope = ""      // none
	ScopeNamed Scope = "named" // those mounted in Config.NamespaceFolders
	ScopeAll   Scope = "all"   // those, and that of every process
)

// An Outcome says what became of a namespace in a collection.
type Outcome string

// The outcomes.
const (
	Collected Outcome = "collected" // its sockets were read
	Idle      Outcome = "idle"      // it has too few sockets for any pool to matter; they were not read
	Failed    Outcome = "failed"    // it could not be read
	Deadline  Outcome = "deadline"  // the time for the collection was over before
)

const (
	// selfNetNS is the label "netns" of the exporter's own namespace.
	selfNetNS = "self"

	// cookiePrefix begins the label of a namespace without a name of its own; behind it
	// comes the kernel's cookie, which no other namespace ever gets.
	cookiePrefix = "netns-"

	// idleShare is the part of its own capacity that a namespace must have in sockets, all
	// of them together, to be read.
	idleShare = 100
)

// A Survey is what a collection says of one network namespace.
type Survey struct {
	NetNS   string // the label; empty if it has no name, and failed before it got one
	Inode   uint64
	Owner   netns.Owner
	Outcome Outcome
	Report  Report // if Collected or Idle
	Err     error  // if Failed or Deadline

	namespace netns.Namespace
	cookie    uint64
	sockets   int
}

// Survey collects once from all namespaces in scope, the process's own first. Namespaces
// that vanish meanwhile are not in it. Failures are logged.
func (c *Collector) Survey() []Survey {
	c.mu.Lock()
	defer c.mu.Unlock()

	start := time.Now()
	deadline := start.Add(c.cfg.Timeout)
	self := Survey{NetNS: selfNetNS, Outcome: Collected}
	selfDeadline := deadline
	if c.cfg.Scope != ScopeSelf {
		selfDeadline = start.Add(c.cfg.Timeout / 2) // as for all others
	}
	if self.Report, self.Err = c.report(selfDeadline); self.Err != nil {
		self.fail(self.Err)
	}
	surveys := []Survey{self}
	if c.cfg.Scope != ScopeSelf {
		surveys = append(surveys, c.surveyOthers(&surveys[0], deadline)...)
		shareLimit(surveys, c.cfg.Limits.Most)
	}
	c.logFailures(surveys)
	return surveys
}

// surveyOthers looks at all namespaces but our own, and reads the busy ones.
func (c *Collector) surveyOthers(self *Survey, deadline time.Time) []Survey {
	var surveys []Survey
	found, err := c.find()
	if err != nil {
		surveys = append(surveys, Survey{Outcome: Failed, Err: err})
	}
	if self.Inode, err = netns.Self(c.cfg.Proc); err != nil {
		return append(surveys, Survey{Outcome: Failed, Err: err})
	}
	self.Owner = netns.OwnerOf(c.cfg.Proc, netns.OwnPID(c.cfg.Proc))

	// A flood of namespaces must leave time for those that matter.
	now := time.Now()
	lookDeadline := now.Add(deadline.Sub(now) / 2)
	var looked []Survey
	for _, ns := range found {
		if ns.Inode == self.Inode {
			continue
		}
		s := Survey{Inode: ns.Inode, namespace: ns}
		err := c.look(&s, lookDeadline)
		if errors.Is(err, netns.ErrGone) {
			continue
		}
		if err != nil {
			s.fail(err)
		}
		looked = append(looked, s)
	}
	c.name(looked)

	var busy []Survey
	for _, s := range looked {
		s.Owner = netns.OwnerOf(c.cfg.Proc, s.namespace.PID)
		if s.Err == nil && s.NetNS == "" {
			s.fail(errNoCookie)
		}
		if s.Outcome == "" {
			busy = append(busy, s)
			continue
		}
		surveys = append(surveys, s)
	}

	slices.SortFunc(busy, func(a, b Survey) int { return cmp.Compare(b.sockets, a.sockets) })
	for _, s := range busy {
		// Whatever one of them has in it, half of the time is left for the others.
		now = time.Now()
		err := c.read(&s, now.Add(deadline.Sub(now)/2))
		if errors.Is(err, netns.ErrGone) {
			continue
		}
		if err != nil {
			s.fail(err)
		}
		surveys = append(surveys, s)
	}
	return surveys
}

// errNoCookie means that a namespace without a mount cannot be named.
var errNoCookie = errors.New("network namespace without a name: this kernel has no cookie for it (Linux 5.14)")

// find lists the namespaces in scope.
func (c *Collector) find() ([]netns.Namespace, error) {
	mounted, err := netns.Mounted(c.cfg.NamespaceFolders)
	if c.cfg.Scope != ScopeAll {
		return mounted, err
	}
	if errors.Is(err, fs.ErrPermission) {
		err = nil // as that of Docker for others than root; its namespaces have processes
	}
	ofProcesses, processErr := netns.OfProcesses(c.cfg.Proc)
	return netns.Merge(mounted, ofProcesses), errors.Join(err, processErr)
}

// look enters a namespace for as long as it takes to see how busy it is. If it is idle, that
// makes the report.
func (c *Collector) look(s *Survey, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return netns.Enter(c.cfg.Proc, s.namespace, func(cookie uint64) error {
		s.cookie = cookie
		start := time.Now()
		ns, err := c.fs.Namespace()
		if err != nil {
			return err
		}
		defer ns.Close()
		settings, err := c.settings(ns)
		if err != nil {
			return err
		}
		sockstat, err := ns.Sockstat()
		if err != nil {
			return err
		}
		s.sockets = sockstat.InUse + sockstat.TimeWait
		t := newTally(settings, nil)
		if s.sockets*idleShare >= t.capacity {
			return nil
		}
		if s.sockets > 0 {
			if err := c.ask(deadline, func(conn *sockdiag.Conn) error {
				t, err = listeners(conn, settings)
				return err
			}); err != nil {
				return err
			}
		}
		s.Outcome = Idle
		s.Report = t.report(settings, c.cfg.Limits)
		s.Report.Partial = s.sockets > 0
		s.Report.TimeWaitSockets = sockstat.TimeWait
		s.Report.TimeWaitOverflows, err = ns.TimeWaitOverflows()
		s.Report.Duration = time.Since(start)
		return err
	})
}

// read enters a busy namespace and collects from it.
func (c *Collector) read(s *Survey, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return netns.Enter(c.cfg.Proc, s.namespace, func(cookie uint64) error {
		if cookie != s.cookie {
			return netns.ErrGone // and its inode went to another
		}
		s.Outcome = Collected
		var err error
		s.Report, err = c.report(deadline)
		return err
	})
}

// fail turns a survey into one that knows nothing.
func (s *Survey) fail(err error) {
	s.Outcome, s.Report, s.Err = Failed, Report{}, err
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.Outcome = Deadline
	}
}

// name gives each namespace its label: that which it had in the last collection; else the
// name of its mount, unless another has it or it could be taken for one of ours; else one
// made of the cookie, or none without. So a label does not go from one namespace to another
// while both are there.
func (c *Collector) name(surveys []Survey) {
	taken := map[string]bool{selfNetNS: true}
	labels := map[uint64]string{}
	for i := range surveys {
		s := &surveys[i]
		if label := c.labels[s.cookie]; s.cookie != 0 && label != "" {
			s.NetNS = label
			taken[label] = true
			labels[s.cookie] = label
		}
	}
	for i := range surveys {
		s := &surveys[i]
		if s.NetNS != "" {
			continue
		}
		s.NetNS = label(s.namespace.Name, s.cookie, taken)
		taken[s.NetNS] = true
		if s.cookie != 0 {
			labels[s.cookie] = s.NetNS
		}
	}
	c.labels = labels
}

// label chooses the label of a namespace that is new.
func label(mount string, cookie uint64, taken map[string]bool) string {
	name := strings.ToValidUTF8(mount, "\uFFFD")
	if name != "" && !taken[name] && !strings.HasPrefix(name, cookiePrefix) {
		return name
	}
	if cookie == 0 {
		return ""
	}
	return cookiePrefix + strconv.FormatUint(cookie, 10)
}

// shareLimit keeps those destinations, and those sources, that hold most in all namespaces
// together. The others are unreported in theirs.
func shareLimit(surveys []Survey, most int) {
	var held, ports []int
	for _, s := range surveys {
		for _, d := range s.Report.Destinations {
			held = append(held, d.Held)
		}
		for _, src := range s.Report.Sources {
			ports = append(ports, src.Ports)
		}
	}
	destinations, sources := newCut(held, most), newCut(ports, most)
	for i := range surveys {
		r := &surveys[i].Report
		r.Destinations = slices.DeleteFunc(r.Destinations, func(d Destination) bool {
			if destinations.keeps(d.Held) {
				return false
			}
			r.UnreportedDestinations++
			r.UnreportedPorts += d.Held
			return true
		})
		r.Sources = slices.DeleteFunc(r.Sources, func(s Source) bool { return !sources.keeps(s.Ports) })
	}
}

// A cut keeps the greatest of some numbers: all above a limit, and as many of the limit
// itself as there is place for.
type cut struct {
	limit, place int
}

// newCut makes a cut that keeps as many of these numbers as most says.
func newCut(numbers []int, most int) cut {
	if len(numbers) <= most {
		return cut{limit: -1}
	}
	slices.SortFunc(numbers, func(a, b int) int { return cmp.Compare(b, a) })
	limit := numbers[most]
	place := most
	for _, n := range numbers[:most] {
		if n > limit {
			place--
		}
	}
	return cut{limit: limit, place: place}
}

// keeps reports whether a number is kept. It is to be asked once for each.
func (c *cut) keeps(n int) bool {
	if n == c.limit && c.place > 0 {
		c.place--
		return true
	}
	return n > c.limit
}
