//go:build linux

package cgroup

import (
	"container/heap"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A search looks for control groups in a mount. Its cost counts what it looks at, whatever the length of the paths: one or two
// microseconds each.
//
// Control groups beside each other have equal shares of the cost, as long as there is something to read in all of them: what
// is read next is in the child that has cost least, and there again in the child that has cost least. So one with very many
// inside hides nothing but these.
//
// A search may go on later. It can find what is wanted since then only in what it has not read yet.
type search struct {
	mount  string
	wanted map[uint64]bool // true if wanted from the beginning
	found  func(id uint64, path string)
	root   branch
	buffer [4096]byte // of directory entries: what is read at once
}

// A branch is a control group with all below it, as far as there is more to read.
type branch struct {
	parent *branch // nil of the root
	name   string
	depth  int // of the root 0

	own    int   // cost of reading the directory
	offset int64 // in the directory, where to go on
	read   bool  // the directory is read to its end
	below  branches
	cost   int // of all
}

// openCost is the cost of opening a directory and reading the files of a control group that are not directories.
const openCost = 8

var (
	// errSpent means that a search has cost as much as it may, and is over.
	errSpent = errors.New("too many control groups for one search, so some have no path")

	// errPaused means that there is more to search, and searches may cost no more now.
	errPaused = errors.New("there are many control groups, so the next scrapes go on with the search")
)

// run searches until all are found. It ends with an error when the search has cost most, with another when this part of it has cost as
// much as it may, and at the deadline.
func (s *search) run(most, ofPart int, deadline time.Time) (cost int, err error) {
	id, err := stat(s.mount)
	if err != nil {
		return 0, err
	}
	s.take(id, func() string { return "/" })
	for !s.root.exhausted() && len(s.wanted) > 0 {
		switch {
		case s.root.cost >= most:
			return cost, errSpent
		case cost >= ofPart:
			return cost, errPaused
		case !time.Now().Before(deadline):
			return cost, os.ErrDeadlineExceeded
		}
		n, err := s.step(&s.root)
		cost += n
		if err != nil {
			return cost, err
		}
	}
	return cost, nil
}

// take reports a control group if it is wanted.
func (s *search) take(id uint64, path func() string) {
	if _, ok := s.wanted[id]; ok {
		delete(s.wanted, id)
		s.found(id, path())
	}
}

// step reads on in the directory below a branch that has cost least.
func (s *search) step(b *branch) (cost int, err error) {
	if !b.read && (len(b.below) == 0 || b.own <= b.below[0].cost) {
		cost, err = s.readDir(b)
		b.own += cost
	} else if cost, err = s.step(b.below[0]); b.below[0].exhausted() {
		heap.Pop(&b.below)
	} else {
		heap.Fix(&b.below, 0)
	}
	b.cost += cost
	return cost, err
}

// readDir reads on in the directory of a branch. It passes over control groups that are removed meanwhile, and those whose owner
// does not let others read them.
func (s *search) readDir(b *branch) (cost int, err error) {
	cost = openCost + b.depth
	path := b.path()
	// A descriptor for each directory that is read in part would be as many as tenants want.
	fd, err := unix.Open(s.mount+path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.read = true
		if b.parent != nil && isHidden(err) {
			return cost, nil
		}
		return cost, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	entries, offset, last, err := readEntries(fd, b.offset, s.buffer[:])
	b.offset, b.read = offset, last || err != nil
	if err != nil && !isHidden(err) {
		return cost, err
	}
	for _, e := range entries {
		child := &branch{parent: b, name: e.name, depth: b.depth + 1}
		s.take(e.inode, child.path)
		if hasDirs(fd, child.name) {
			heap.Push(&b.below, child)
		}
	}
	return cost + len(entries), nil
}

// exhausted reports whether there is nothing more to read.
func (b *branch) exhausted() bool { return b.read && len(b.below) == 0 }

// path returns the path of the branch in the mount.
func (b *branch) path() string {
	if b.parent == nil {
		return "/"
	}
	var names []string
	n := 0
	for ; b.parent != nil; b = b.parent {
		names = append(names, b.name)
		n += 1 + len(b.name)
	}
	path := make([]byte, 0, n)
	for _, name := range slices.Backward(names) {
		path = append(append(path, '/'), name...)
	}
	return string(path)
}

// branches are a heap: the first has cost least.
type branches []*branch

func (b branches) Len() int           { return len(b) }
func (b branches) Less(i, j int) bool { return b[i].cost < b[j].cost }
func (b branches) Swap(i, j int)      { b[i], b[j] = b[j], b[i] }
func (b *branches) Push(x any)        { *b = append(*b, x.(*branch)) }
func (b *branches) Pop() any {
	last := (*b)[len(*b)-1]
	*b = (*b)[:len(*b)-1]
	return last
}

// isHidden reports whether an error means that a control group is removed, that its owner does not let others read it, or that
// its path is longer than PATH_MAX.
func isHidden(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENAMETOOLONG)
}
