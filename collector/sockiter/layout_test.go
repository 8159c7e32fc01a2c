//go:build linux

package sockiter

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// The types of a small kernel.
var (
	byteType = &btf.Int{Name: "unsigned char", Size: 1}
	halfType = &btf.Int{Name: "short unsigned int", Size: 2}
	wordType = &btf.Int{Name: "unsigned int", Size: 4}
	longType = &btf.Int{Name: "long unsigned int", Size: 8}
	addrType = &btf.Struct{Name: "in6_addr", Size: 16, Members: []btf.Member{{Name: "s6_addr32", Type: &btf.Array{Index: wordType, Type: wordType, Nelems: 4}}}}
)

// kernelTypes returns the structures that newLayout reads, by name. Offsets in a Member are in
// bits.
func kernelTypes() map[string]*btf.Struct {
	types := map[string]*btf.Struct{}
	add := func(name string, size uint32, members ...btf.Member) *btf.Struct {
		types[name] = &btf.Struct{Name: name, Size: size, Members: members}
		return types[name]
	}
	add("bpf_iter_meta", 16, btf.Member{Type: &btf.Union{Size: 8, Members: []btf.Member{{Name: "seq", Type: &btf.Pointer{Target: &btf.Void{}}}}}})
	add("sock_common", 80,
		btf.Member{Type: &btf.Union{Size: 8, Members: []btf.Member{
			{Name: "skc_addrpair", Type: longType},
			{Type: &btf.Struct{Size: 8, Members: []btf.Member{{Name: "skc_daddr", Type: wordType}, {Name: "skc_rcv_saddr", Type: wordType, Offset: 32}}}},
		}}},
		btf.Member{Name: "skc_dport", Type: halfType, Offset: 96},
		btf.Member{Name: "skc_num", Type: &btf.Typedef{Name: "__u16", Type: halfType}, Offset: 112},
		btf.Member{Name: "skc_family", Type: halfType, Offset: 128},
		btf.Member{Name: "skc_state", Type: &btf.Volatile{Type: byteType}, Offset: 144},
		btf.Member{Name: "skc_reuse", Type: byteType, Offset: 152, BitfieldSize: 4},
		btf.Member{Name: "skc_ipv6only", Type: byteType, Offset: 157, BitfieldSize: 1},
		btf.Member{Name: "skc_bound_dev_if", Type: wordType, Offset: 160},
		btf.Member{Name: "skc_v6_daddr", Type: addrType, Offset: 256},
		btf.Member{Name: "skc_v6_rcv_saddr", Type: addrType, Offset: 384},
	)
	bucket := &btf.Pointer{Target: add("inet_bind_bucket", 16,
		btf.Member{Name: "fastreuse", Type: byteType, Offset: 64}, btf.Member{Name: "fastreuseport", Type: byteType, Offset: 72})}
	connection := add("inet_connection_sock", 16, btf.Member{Name: "icsk_bind_hash", Type: bucket, Offset: 64})
	add("tcp_sock", 64, btf.Member{Name: "inet_conn", Type: connection, Offset: 256})
	timer := add("timer_list", 16, btf.Member{Name: "expires", Type: longType, Offset: 64})
	timeWait := add("inet_timewait_sock", 64,
		btf.Member{Name: "tw_substate", Type: byteType, Offset: 8},
		btf.Member{Name: "tw_timer", Type: timer, Offset: 128},
		btf.Member{Name: "tw_tb", Type: bucket, Offset: 320})
	add("tcp_timewait_sock", 80, btf.Member{Name: "tw_sk", Type: timeWait}, btf.Member{Name: "tw_ts_recent_stamp", Type: wordType, Offset: 512})
	node := add("kernfs_node", 128, btf.Member{Name: "id", Type: longType, Offset: 768})
	group := add("cgroup", 512, btf.Member{Name: "kn", Type: &btf.Pointer{Target: node}, Offset: 2048})
	data := add("sock_cgroup_data", 16, btf.Member{Name: "cgroup", Type: &btf.Pointer{Target: group}})
	add("sock", 760, btf.Member{Name: "sk_cgrp_data", Type: data, Offset: 4096})
	return types
}

// specOf returns types as the kernel describes them.
func specOf(t *testing.T, types map[string]*btf.Struct) *btf.Spec {
	t.Helper()
	var all []btf.Type
	for _, s := range types {
		all = append(all, s)
	}
	b, err := btf.NewBuilder(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSplitSpecFromReader(bytes.NewReader(raw), nil)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestLayout reads the offsets of a small kernel, through structures, pointers and members without
// a name.
func TestLayout(t *testing.T) {
	got, err := newLayout(specOf(t, kernelTypes()))
	want := layout{
		seq:     field{0, 8, 0},
		remote4: field{0, 4, 0}, local4: field{4, 4, 0}, remotePort: field{12, 2, 0}, port: field{14, 2, 0},
		family: field{16, 2, 0}, state: field{18, 1, 0}, v6only: field{19, bit, 1 << 5}, ifindex: field{20, 4, 0},
		remote6: field{32, 16, 0}, local6: field{48, 16, 0},
		bucket:         field{40, 8, 0},
		timeWaitBucket: field{40, 8, 0}, substate: field{1, 1, 0}, expires: field{24, 8, 0}, timestamp: field{64, 4, 0},
		fastReuse: field{8, 1, 0}, fastReusePort: field{9, 1, 0},
		cgroup: [3]field{{512, 8, 0}, {256, 8, 0}, {96, 8, 0}},
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}

	// Before Linux 5.15, or without CONFIG_SOCK_CGROUP_DATA.
	for _, member := range []string{"cgroup", "other"} {
		types := kernelTypes()
		types["sock_cgroup_data"].Members[0].Name = member
		types["kernfs_node"].Members[0].Type = map[string]btf.Type{"cgroup": wordType, "other": longType}[member]
		got, err := newLayout(specOf(t, types))
		if want.cgroup = [3]field{}; err != nil || got != want {
			t.Errorf("without control groups: got %+v, %v, want %+v", got, err, want)
		}
	}
}

// TestLayoutErrors checks that a kernel with other structures is refused, and what of them is named.
func TestLayoutErrors(t *testing.T) {
	member := func(name, member string, change func(*btf.Member)) func(map[string]*btf.Struct) {
		return func(types map[string]*btf.Struct) {
			for i := range types[name].Members {
				if m := &types[name].Members[i]; m.Name == member {
					change(m)
					return
				}
			}
			t.Errorf("no %s in %s", member, name)
		}
	}
	tests := []struct {
		name   string
		change func(map[string]*btf.Struct)
		want   string
	}{
		{"no iterators", func(types map[string]*btf.Struct) { delete(types, "bpf_iter_meta") }, "bpf_iter_meta.seq: "},
		{"no structure", func(types map[string]*btf.Struct) { types["tcp_timewait_sock"].Name = "other" }, "tcp_timewait_sock.tw_sk.tw_tb: "},
		{"no member", member("inet_bind_bucket", "fastreuseport", func(m *btf.Member) { m.Name = "other" }), "inet_bind_bucket.fastreuseport: no member fastreuseport"},
		{"no inner member", member("inet_connection_sock", "icsk_bind_hash", func(m *btf.Member) { m.Name = "other" }), "tcp_sock.inet_conn.icsk_bind_hash: no member icsk_bind_hash"},
		{"not a structure", member("tcp_sock", "inet_conn", func(m *btf.Member) { m.Type = longType }), "tcp_sock.inet_conn.icsk_bind_hash: no member icsk_bind_hash"},
		{"32 bits", member("timer_list", "expires", func(m *btf.Member) { m.Type = wordType }), "tcp_timewait_sock.tw_sk.tw_timer.expires has 4 bytes at 24, expected 8"},
		{"a byte instead of a bit", member("sock_common", "skc_ipv6only", func(m *btf.Member) { m.BitfieldSize = 0 }), "sock_common.skc_ipv6only has 1 bytes"},
		{"two bits", member("sock_common", "skc_ipv6only", func(m *btf.Member) { m.BitfieldSize = 2 }), "sock_common.skc_ipv6only: it has 2 bits"},
		{"bits instead of a byte", member("sock_common", "skc_state", func(m *btf.Member) { m.BitfieldSize = 1 }), "sock_common.skc_state has 0 bytes"},
		{"far away", member("tcp_sock", "inet_conn", func(m *btf.Member) { m.Offset = 32768 * 8 }), "tcp_sock.inet_conn.icsk_bind_hash has 8 bytes at 32776"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			types := kernelTypes()
			tt.change(types)
			if _, err := newLayout(specOf(t, types)); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %v: %s", err, ErrUnsupported, tt.want)
			}
		})
	}
}
