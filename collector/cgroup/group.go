package cgroup

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Group is a control group.
type Group struct {
	// Path is where it is in the mount, "/" or what follows it. It is valid UTF-8 of at most
	// maxPath bytes. If the mount does not have the control group, because it is removed
	// or outside, Path is "cgroup-" and its number.
	Path string

	Workload // of its processes, by the path
}

// maxPath is the greatest length of Group.Path. The longest of kubelet and container runtimes have
// 200 bytes.
const maxPath = 512

// newGroup returns the control group with a path in the mount.
func newGroup(path string) Group {
	group := Group{Workload: parsePath(path)}
	path = strings.ToValidUTF8(path, "\uFFFD")
	if len(path) > maxPath {
		const ellipsis = "…"
		end := maxPath - len(ellipsis)
		for !utf8.RuneStart(path[end]) {
			end--
		}
		path = path[:end] + ellipsis
	}
	group.Path = path
	return group
}

// unnamed returns a control group without a path.
func unnamed(id uint64) Group { return Group{Path: "cgroup-" + strconv.FormatUint(id, 10)} }
