//go:build linux

package connectfail

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// structs are the offsets of members of the kernel's structures that lead from a socket to its
// network namespace, and from there to the user namespace that owns it.
type structs struct {
	socketNet  int32 // struct sock: __sk_common.skc_net.net
	netCookie  int32 // struct net: net_cookie
	netUserNS  int32 // struct net: user_ns
	userParent int32 // struct user_namespace: parent
	userLevel  int32 // struct user_namespace: level, 0 for the initial one
	userOwner  int32 // struct user_namespace: owner, the user who made it, in the initial one
	userInode  int32 // struct user_namespace: ns.inum
}

// errNoNamespaces means that the program cannot tell the network namespace of a failure.
var errNoNamespaces = errors.New("the kernel does not tell the network namespace of a failed connect(): it needs Linux 5.12 with CONFIG_DEBUG_INFO_BTF")

// readStructs returns the offsets from the BTF of the running kernel. The error is
// errNoNamespaces.
func readStructs() (*structs, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoNamespaces, err)
	}
	var s structs
	for _, want := range []struct {
		to   *int32
		size int
		path []string
	}{
		{&s.socketNet, 8, []string{"sock", "__sk_common", "skc_net", "net"}},
		{&s.netCookie, 8, []string{"net", "net_cookie"}},
		{&s.netUserNS, 8, []string{"net", "user_ns"}},
		{&s.userParent, 8, []string{"user_namespace", "parent"}},
		{&s.userLevel, 4, []string{"user_namespace", "level"}},
		{&s.userOwner, 4, []string{"user_namespace", "owner", "val"}},
		{&s.userInode, 4, []string{"user_namespace", "ns", "inum"}},
	} {
		if *want.to, err = offsetOf(spec, want.size, want.path[0], want.path[1:]...); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoNamespaces, err)
		}
	}
	return &s, nil
}

// offsetOf returns the offset of a member of a structure, in bytes. The path leads through
// structures in it. The member must be a number or a pointer of that size. Before Linux 5.12,
// net_cookie is neither, and mostly not set.
func offsetOf(spec *btf.Spec, size int, name string, path ...string) (int32, error) {
	var in *btf.Struct
	if err := spec.TypeByName(name, &in); err != nil {
		return 0, err
	}
	offset := uint32(0)
	var last btf.Type = in
	for _, part := range path {
		in, ok := btf.UnderlyingType(last).(*btf.Struct)
		if !ok {
			return 0, fmt.Errorf("BTF: %s in struct %s is in no structure", part, name)
		}
		member, ok := memberOf(in, part)
		if !ok {
			return 0, fmt.Errorf("BTF: struct %s has no %s", name, part)
		}
		offset += member.Offset.Bytes()
		last = member.Type
	}
	last = btf.UnderlyingType(last)
	_, number := last.(*btf.Int)
	_, pointer := last.(*btf.Pointer)
	if n, err := btf.Sizeof(last); err != nil || n != size || !number && !pointer {
		return 0, fmt.Errorf("BTF: in struct %s, %q is a %T of %d bytes", name, path, last, n)
	}
	return int32(offset), nil
}

// memberOf returns the member of a structure with that name.
func memberOf(in *btf.Struct, name string) (btf.Member, bool) {
	for _, m := range in.Members {
		if m.Name == name {
			return m, true
		}
	}
	return btf.Member{}, false
}
