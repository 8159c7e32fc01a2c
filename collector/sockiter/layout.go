//go:build linux

package sockiter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// btfFile describes the types of the running kernel. Every user may read it.
const btfFile = "/sys/kernel/btf/vmlinux"

// A field is the position of a value in a structure, in bytes.
type field struct {
	offset, size int
	mask         int32 // of a single bit, else 0
}

// A layout holds the fields of the kernel's structures that the program reads. Offsets differ
// between kernels.
type layout struct {
	seq field // of struct bpf_iter_meta

	// Of struct sock_common, which all sockets begin with. The port is in the byte order of the
	// host, the remote port and the addresses are in network byte order.
	family, state, ifindex, port, remotePort field
	local4, remote4, local6, remote6         field
	v6only                                   field

	bucket field // of struct tcp_sock: a pointer to struct inet_bind_bucket

	// Of struct tcp_timewait_sock.
	timeWaitBucket field
	substate       field // TIME_WAIT or FIN_WAIT2
	expires        field // in ticks (jiffies)
	timestamp      field

	fastReuse, fastReusePort field // of struct inet_bind_bucket

	// From struct sock to the number of its control group: pointers to struct cgroup and to struct
	// kernfs_node, and the number. All are zero if the kernel does not have them, which Linux 5.15
	// with CONFIG_SOCK_CGROUP_DATA does.
	cgroup [3]field
}

// readLayout reads the layout of the running kernel. The error is fs.ErrNotExist if the kernel does
// not describe itself, or ErrUnsupported.
func readLayout() (layout, error) {
	if _, err := os.Stat(btfFile); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return layout{}, fmt.Errorf("no description of the kernel's types (BTF), it needs CONFIG_DEBUG_INFO_BTF=y, and in a container the directory /sys/kernel/btf of the host: %w", err)
		}
		return layout{}, err
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return layout{}, fmt.Errorf("read %s: %w", btfFile, err)
	}
	return newLayout(spec)
}

// bit is the size of a single bit, in bytes.
const bit = 0

// newLayout finds the fields in the kernel's types. The error is ErrUnsupported.
func newLayout(spec *btf.Spec) (layout, error) {
	var l layout
	for _, want := range []struct {
		to   *field
		size int
		path []string // name of a structure, of its member, of the member's member and so on
	}{
		{&l.seq, 8, []string{"bpf_iter_meta", "seq"}},
		{&l.family, 2, []string{"sock_common", "skc_family"}},
		{&l.state, 1, []string{"sock_common", "skc_state"}},
		{&l.ifindex, 4, []string{"sock_common", "skc_bound_dev_if"}},
		{&l.port, 2, []string{"sock_common", "skc_num"}},
		{&l.remotePort, 2, []string{"sock_common", "skc_dport"}},
		{&l.local4, 4, []string{"sock_common", "skc_rcv_saddr"}},
		{&l.remote4, 4, []string{"sock_common", "skc_daddr"}},
		{&l.local6, addressSize, []string{"sock_common", "skc_v6_rcv_saddr"}},
		{&l.remote6, addressSize, []string{"sock_common", "skc_v6_daddr"}},
		{&l.v6only, bit, []string{"sock_common", "skc_ipv6only"}},
		{&l.bucket, 8, []string{"tcp_sock", "inet_conn", "icsk_bind_hash"}},
		{&l.timeWaitBucket, 8, []string{"tcp_timewait_sock", "tw_sk", "tw_tb"}},
		{&l.substate, 1, []string{"tcp_timewait_sock", "tw_sk", "tw_substate"}},
		{&l.expires, 8, []string{"tcp_timewait_sock", "tw_sk", "tw_timer", "expires"}},
		{&l.timestamp, 4, []string{"tcp_timewait_sock", "tw_ts_recent_stamp"}},
		{&l.fastReuse, 1, []string{"inet_bind_bucket", "fastreuse"}},
		{&l.fastReusePort, 1, []string{"inet_bind_bucket", "fastreuseport"}},
	} {
		f, err := findField(spec, want.path)
		if err != nil {
			return layout{}, fmt.Errorf("%w: %s: %w", ErrUnsupported, strings.Join(want.path, "."), err)
		}
		if f.size != want.size || f.offset+f.size > math.MaxInt16 {
			return layout{}, fmt.Errorf("%w: %s has %d bytes at %d, expected %d bytes", ErrUnsupported, strings.Join(want.path, "."), f.size, f.offset, want.size)
		}
		*want.to = f
	}
	l.cgroup = findCgroup(spec)
	return l, nil
}

// findCgroup returns layout.cgroup.
func findCgroup(spec *btf.Spec) (fields [3]field) {
	for i, path := range [...][]string{{"sock", "sk_cgrp_data", "cgroup"}, {"cgroup", "kn"}, {"kernfs_node", "id"}} {
		f, err := findField(spec, path)
		if err != nil || f.size != 8 || f.offset > math.MaxInt16-f.size {
			return [3]field{}
		}
		fields[i] = f
	}
	return fields
}

// findField returns the field at the end of a path.
func findField(spec *btf.Spec, path []string) (field, error) {
	var structure *btf.Struct
	if err := spec.TypeByName(path[0], &structure); err != nil {
		return field{}, err
	}
	last := btf.Member{Type: structure}
	for _, name := range path[1:] {
		m, ok := findMember(last.Type, name)
		if !ok {
			return field{}, fmt.Errorf("no member %s", name)
		}
		m.Offset += last.Offset
		last = m
	}
	switch last.BitfieldSize {
	case 0:
		size, err := btf.Sizeof(last.Type)
		return field{offset: int(last.Offset.Bytes()), size: size}, err
	case 1:
		return singleBit(last.Offset), nil
	default:
		return field{}, fmt.Errorf("it has %d bits", last.BitfieldSize)
	}
}

// findMember finds a member of a structure or union. Those of a member without a name belong to it.
// The Offset of the result is from the start of typ.
func findMember(typ btf.Type, name string) (btf.Member, bool) {
	var members []btf.Member
	switch typ := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		members = typ.Members
	case *btf.Union:
		members = typ.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m, true
		}
		if m.Name == "" {
			if inner, ok := findMember(m.Type, name); ok {
				inner.Offset += m.Offset
				return inner, true
			}
		}
	}
	return btf.Member{}, false
}

// singleBit returns the field of a single bit. On machines with the other byte order, bits are
// counted from the most significant one.
func singleBit(offset btf.Bits) field {
	n := offset % 8
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		n = 7 - n
	}
	return field{offset: int(offset / 8), size: bit, mask: 1 << n}
}
