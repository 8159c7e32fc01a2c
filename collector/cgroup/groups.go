//go:build linux

package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	// maxCost is what one search may cost, see search. With kubelet's limit of 110 pods, a node has less than a thousand control
	// groups: all searched, a container costs 1 and a pod about 15.
	maxCost = 16_000

	// maxCredit is what a part of a search may cost. It is earned in creditTime.
	maxCredit  = maxCost / 2
	creditTime = time.Minute

	// maxWait is how long a control group that was not found by searches that were not complete is not searched again.
	maxWait = time.Hour

	// maxKnown is how many control groups Groups remembers, and four times as many as the largest call of Find had.
	maxKnown = 4096
)

const (
	superMagic = 0x63677270 // CGROUP2_SUPER_MAGIC of linux/magic.h
	sysfsMagic = 0x62656572 // SYSFS_MAGIC
	rootInode  = 1          // of the root of all control groups
)

// ErrNotMounted means that there is no cgroup2 file system.
var ErrNotMounted = errors.New("no cgroup2 file system")

// Groups finds control groups by their numbers: a number is the inode of a directory in the cgroup2
// file system, and never another control group has it.
type Groups struct {
	mount  string
	known  map[uint64]Group
	missed map[uint64]miss

	calls   uint64            // of Find
	used    map[uint64]uint64 // the last call for each number that is known, missed or searched
	largest int               // most numbers of a call

	searching *search   // goes on; nil if none does
	most      int       // maxCost, less in tests
	credit    int       // what searches may cost now; negative if one has cost a little more
	credited  time.Time // when that was so
}

// A miss is a control group that a search did not find before it had to end.
type miss struct {
	wait time.Duration
	next time.Time // when it is searched again
	err  error
}

// Open returns the Groups of the cgroup2 file system that is mounted at path, or at path/unified, its
// usual place beside hierarchies of version 1. The error is ErrNotMounted, and tells the likely cause.
func Open(path string) (*Groups, error) {
	cause := "the host has control groups of version 1 only, or cgroup2 is mounted elsewhere"
	for _, mount := range []string{path, filepath.Join(path, "unified")} {
		var st syscall.Statfs_t
		if err := syscall.Statfs(mount, &st); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			cause = "statfs: " + err.Error()
			continue
		}
		switch st.Type {
		case superMagic:
			return newGroups(mount), nil
		case sysfsMagic:
			// The empty directory of sysfs, on which hosts mount their control groups. ip-netns(8) mounts a new
			// sysfs over /sys.
			cause = "nothing is mounted there: ip netns exec hides the control groups of the host, and nsenter --net does not"
		}
	}
	return nil, fmt.Errorf("cgroup: %w at %s or %s: %s", ErrNotMounted, path, filepath.Join(path, "unified"), cause)
}

func newGroups(mount string) *Groups {
	return &Groups{mount: mount, known: map[uint64]Group{}, missed: map[uint64]miss{}, used: map[uint64]uint64{}, most: maxCost, credit: maxCredit, credited: time.Now()}
}

// Complete reports whether the mount shows all control groups of the host. In a cgroup namespace, a
// mount shows only those below the root of that.
func (g *Groups) Complete() (bool, error) {
	id, err := stat(g.mount)
	return id == rootInode, err
}

// Find returns the control groups with these numbers. Those that are not known yet, it asks the kernel for, if the process has
// CAP_DAC_READ_SEARCH. Otherwise it searches for them, once and not after the deadline. The error says why some have no path that a
// later call may find. Without Groups, only the root has a path: where cgroup2 is not mounted, all processes and sockets belong
// to it.
func (g *Groups) Find(ids []uint64, deadline time.Time) (map[uint64]Group, error) {
	found := make(map[uint64]Group, len(ids))
	for _, id := range ids {
		found[id] = unnamed(id)
	}
	if g == nil {
		if _, ok := found[rootInode]; ok {
			found[rootInode] = newGroup("/")
		}
		return found, nil
	}
	g.calls++
	g.largest = max(g.largest, len(found))
	unknown := map[uint64]bool{}
	for id := range found {
		g.used[id] = g.calls
		if _, ok := g.known[id]; !ok {
			unknown[id] = true
		}
	}
	if len(unknown) > 0 {
		g.ask(unknown, deadline)
	}
	err := g.search(unknown, deadline)
	for id := range found {
		if group, ok := g.known[id]; ok {
			found[id] = group
		}
	}
	g.forget()
	return found, err
}

// forget bounds what is remembered. Of too many, those go that Find was asked for longest ago. What the last two calls
// asked for stays, as those of one scan, also if others come between that ask for less than half of maxKnown.
func (g *Groups) forget() {
	most := maxKnown + 4*g.largest
	if len(g.used) <= most {
		return
	}
	ids := slices.SortedFunc(maps.Keys(g.used), func(a, b uint64) int { return cmp.Compare(g.used[b], g.used[a]) })
	for _, id := range ids[most/2:] {
		delete(g.used, id)
		delete(g.known, id)
		delete(g.missed, id)
		if g.searching != nil {
			delete(g.searching.wanted, id)
		}
	}
}

// search searches for unknown control groups, or goes on with a search, as far as credit and deadline allow. It does not
// if all of them were missed a short while ago. It returns an error if some stay unknown.
//
// A search that comes to its end finds all that there are. Of one that had to end before, what it missed may be anywhere.
func (g *Groups) search(unknown map[uint64]bool, deadline time.Time) (err error) {
	now := time.Now()
	due := false
	for id := range unknown {
		m := g.missed[id]
		due = due || !now.Before(m.next)
		err = cmp.Or(m.err, err)
	}
	if !due {
		return err
	}
	if earned := int(now.Sub(g.credited).Seconds() / creditTime.Seconds() * maxCredit); earned > 0 {
		g.credit, g.credited = min(g.credit+earned, maxCredit), now
	}
	if g.searching == nil {
		g.searching = &search{mount: g.mount, wanted: maps.Clone(unknown), found: func(id uint64, path string) {
			g.known[id] = newGroup(path)
			delete(g.missed, id)
		}}
	}
	for id := range unknown {
		if _, ok := g.searching.wanted[id]; !ok {
			g.searching.wanted[id] = false
		}
	}
	cost, err := g.searching.run(g.most, g.credit, deadline)
	g.credit -= cost
	if !errors.Is(err, errPaused) && !errors.Is(err, os.ErrDeadlineExceeded) {
		g.conclude(g.searching.wanted, err, now)
		g.searching = nil
	}
	for id := range unknown {
		if _, ok := g.known[id]; !ok {
			return fmt.Errorf("cgroup: search %s: %w", g.mount, cmp.Or(err, errPaused))
		}
	}
	return nil
}

// conclude remembers what a search that is over did not find. What was not wanted from its beginning is left to the next one.
func (g *Groups) conclude(wanted map[uint64]bool, err error, now time.Time) {
	for id, fromBeginning := range wanted {
		switch m := g.missed[id]; {
		case !fromBeginning:
		case err == nil:
			g.known[id] = unnamed(id)
			delete(g.missed, id)
		case errors.Is(err, errSpent) && !now.Before(m.next):
			wait := min(max(time.Minute, 2*m.wait), maxWait)
			g.missed[id] = miss{wait, now.Add(wait), fmt.Errorf("cgroup: search %s: %w", g.mount, err)}
		}
	}
}
