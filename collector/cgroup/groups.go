//go:build linux

package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// maxSearched is how many directories one search looks at. With kubelet's limit of 110 pods, a
	// node has less than a thousand.
	maxSearched = 10_000

	// maxKnown is how many control groups Groups remembers besides those of the last call of Find.
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
	mount string
	known map[uint64]Group
}

// Open returns the Groups of the cgroup2 file system that is mounted at path, or at path/unified, its
// usual place beside hierarchies of version 1. The error is ErrNotMounted, and tells the likely cause.
func Open(path string) (*Groups, error) {
	cause := "the host has control groups of version 1 only, or cgroup2 is mounted elsewhere"
	for _, mount := range []string{path, filepath.Join(path, "unified")} {
		var st syscall.Statfs_t
		if err := syscall.Statfs(mount, &st); err != nil {
			continue
		}
		switch st.Type {
		case superMagic:
			return &Groups{mount: mount, known: map[uint64]Group{}}, nil
		case sysfsMagic:
			// The empty directory of sysfs, on which hosts mount their control groups. ip-netns(8) mounts a new
			// sysfs over /sys.
			cause = "nothing is mounted there: ip netns exec hides the control groups of the host, and nsenter --net does not"
		}
	}
	return nil, fmt.Errorf("cgroup: %w at %s or %s: %s", ErrNotMounted, path, filepath.Join(path, "unified"), cause)
}

// Complete reports whether the mount shows all control groups of the host. In a cgroup namespace, a
// mount shows only those below the root of that.
func (g *Groups) Complete() (bool, error) {
	id, _, err := stat(g.mount)
	return id == rootInode, err
}

// Find returns the control groups with these numbers. If some are not known yet, it searches for
// them, once and not after the deadline. The error says why the search is not complete; then the
// next one may find more. Without Groups, only the root has a path: where cgroup2 is not mounted, all
// processes and sockets belong to it.
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
	unknown := map[uint64]bool{}
	for id := range found {
		if _, ok := g.known[id]; !ok {
			unknown[id] = true
		}
	}
	var err error
	if len(unknown) > 0 {
		if err = g.search(unknown, deadline); err == nil {
			for id := range unknown {
				g.known[id] = unnamed(id)
			}
		}
	}
	for id := range found {
		if group, ok := g.known[id]; ok {
			found[id] = group
		}
	}
	if len(g.known) > maxKnown {
		for id := range g.known {
			if _, ok := found[id]; !ok {
				delete(g.known, id)
			}
		}
	}
	return found, err
}

// search moves control groups from unknown to known. It searches level by level, so that many
// control groups deep inside of one do not hide others.
func (g *Groups) search(unknown map[uint64]bool, deadline time.Time) error {
	take := func(id uint64, path string) {
		if unknown[id] {
			delete(unknown, id)
			g.known[id] = newGroup(path)
		}
	}
	id, _, err := stat(g.mount)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	take(id, "/")
	left := maxSearched
	for level := []string{"/"}; len(level) > 0; {
		var next []string
		for _, dir := range level {
			if len(unknown) == 0 {
				return nil
			}
			if !time.Now().Before(deadline) {
				return fmt.Errorf("cgroup: search %s: %w", g.mount, os.ErrDeadlineExceeded)
			}
			err := g.children(dir, func(name string, id uint64, leaf bool) bool {
				path := filepath.Join(dir, name)
				take(id, path)
				if !leaf {
					next = append(next, path)
				}
				left--
				return left > 0
			})
			if err != nil && (dir == "/" || !isHidden(err)) {
				return fmt.Errorf("cgroup: %w", err)
			}
			if left == 0 && len(unknown) > 0 {
				return fmt.Errorf("cgroup: search %s: more than %d control groups", g.mount, maxSearched)
			}
		}
		level = next
	}
	return nil
}

// children calls each for the children of a control group, until that returns false. It passes over
// those that are removed meanwhile.
func (g *Groups) children(dir string, each func(name string, id uint64, leaf bool) bool) error {
	d, err := os.Open(filepath.Join(g.mount, dir))
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(256)
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			// An error means that it is removed, or that its path is longer than PATH_MAX.
			id, leaf, err := stat(filepath.Join(d.Name(), e.Name()))
			if err == nil && !each(e.Name(), id, leaf) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// isHidden reports whether an error means that a control group is removed, or that its owner does
// not let others read it.
func isHidden(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, fs.ErrPermission)
}

// stat returns the inode of a directory, and whether it has no directories.
func stat(path string) (id uint64, leaf bool, err error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return 0, false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st.Ino, st.Nlink == 2, nil // 2 and the number of directories in it (fs/kernfs/inode.c)
}
