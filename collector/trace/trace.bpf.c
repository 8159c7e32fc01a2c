//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "../internal/bpf/kernel.h"

// See slot.go for what these mean.
struct pool {
	__u8 source[16], destination[16];
	__u32 port, call;
	__u64 namespace, cgroup;
};

struct slot {
	struct pool pool;
	__u64 ancestor, tenant;
	__u32 tenant_share, ancestor_share;
	char command[16];
	__u32 process, unused;
	__u64 events; // the last member
};

struct share {
	__u32 taken, returned; // in the last share: the limits of a tenant and of an ancestor
};

// How often something happened in pools with one hash, halved every 2^SEEN_TIME nanoseconds (9 s).
struct seen {
	__u32 time, events;
};

#define AF_INET6 10
#define PF_KTHREAD 0x00200000 // see include/linux/sched.h

#define CONNECT 1 // a call; the others are the protocols of sockets that are bound
#define CLOSE 2

#define SHARE_BITS 16
#define SHARES (1 << SHARE_BITS)
#define TENANT_USER (1ULL << 62)
#define TENANT_USER_NS (1ULL << 61)
#define MAX_USER_NS_LEVELS 33 // see create_user_ns in kernel/user_namespace.c
#define MAX_CGROUP_LEVELS 32 // that a control group is looked for in; a deeper one is its own ancestor
#define SEEN_BITS 16
#define SEEN_TIME 33

// The maps of a table, of which there are two: so closes, which are many, take no place from failures. User space sets
// how many slots there are.
#define TABLE(pools, slots, free_slots, shares) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__type(key, struct pool); \
		__type(value, __u32); /* the number of its slot */ \
	} pools SEC(".maps"); \
	struct { \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__type(key, __u32); \
		__type(value, struct slot); \
	} slots SEC(".maps"); \
	struct { \
		__uint(type, BPF_MAP_TYPE_QUEUE); \
		__type(value, __u32); \
	} free_slots SEC(".maps"); \
	struct { \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__uint(max_entries, SHARES + 1); \
		__type(key, __u32); \
		__type(value, struct share); \
	} shares SEC(".maps")

TABLE(fail_pools, fail_slots, fail_free, fail_shares);
TABLE(close_pools, close_slots, close_free, close_shares);

struct table {
	void *pools, *slots, *free_slots, *shares;
	__u32 rest; // the number of the slot for events of a call in pools without a slot of their own
};

#define FAILURES (struct table){&fail_pools, &fail_slots, &fail_free, &fail_shares, fail_rest}
#define CLOSES (struct table){&close_pools, &close_slots, &close_free, &close_shares, close_rest}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << SEEN_BITS);
	__type(key, __u32);
	__type(value, struct seen);
} close_seen SEC(".maps");

volatile const __u32 fail_rest;  // for connects; the next one is for binds
volatile const __u32 close_rest;
volatile const bool namespaces;  // whether the kernel has net_cookie (Linux 5.12)
volatile const bool ancestors;   // whether it has bpf_get_current_ancestor_cgroup_id for this program (Linux 5.14)
volatile const bool closes;      // whether it has the range of ports where in_range reads it

// tenant_of returns who made a network namespace, see tenants in slot.go.
static __always_inline __u64 tenant_of(struct net *net, __u64 cookie)
{
	struct user_namespace *user = BPF_CORE_READ(net, user_ns);
	if (BPF_CORE_READ(user, level) == 0)
		return cookie;
	for (int i = 0; i < MAX_USER_NS_LEVELS && BPF_CORE_READ(user, level) > 1; i++)
		user = BPF_CORE_READ(user, parent);
	__u32 owner = BPF_CORE_READ(user, owner.val);
	return owner ? TENANT_USER | owner : TENANT_USER_NS | BPF_CORE_READ(user, ns.inum);
}

// ancestor_of returns the control group on the second level that a control group is in, or the caller if that is NULL: a
// service of systemd, or the slice of a user, who can make any number of control groups below that.
static __always_inline __u64 ancestor_of(struct cgroup *group, __u64 id)
{
	if (!ancestors)
		return id;
	if (!group)
		return bpf_get_current_ancestor_cgroup_id(2) ?: bpf_get_current_ancestor_cgroup_id(1);
	int level = BPF_CORE_READ(group, level);
	if (level == 0)
		return 0;
	for (int i = 0; i < MAX_CGROUP_LEVELS && level > 2; i++, level--)
		group = (void *)BPF_CORE_READ(group, self.parent) - bpf_core_field_offset(group->self);
	return level > 2 ? id : BPF_CORE_READ(group, kn, id);
}

// available returns a share unless it is used up. Two CPUs can pass this at once, for one slot too many each.
static __always_inline struct share *available(void *shares, __u32 number, __u32 limit)
{
	struct share *s = bpf_map_lookup_elem(shares, &number);
	return s && s->taken - s->returned < limit ? s : NULL;
}

// often adds a close to those that pools with its hash had of late, and returns them. CPUs that do this at once lose some.
static __always_inline __u32 often(struct pool *pool)
{
	const __u64 *words = (const __u64 *)pool;
	__u64 hash = 0;
	for (int i = 0; i < sizeof(*pool) / sizeof(*words); i++) {
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15;
		hash ^= hash >> 32;
	}
	__u32 number = hash & ((1 << SEEN_BITS) - 1), now = bpf_ktime_get_ns() >> SEEN_TIME;
	struct seen *s = bpf_map_lookup_elem(&close_seen, &number);
	if (!s) // never
		return 0;
	__u32 age = now - s->time;
	s->events = (age < 32 ? s->events >> age : 0) + 1;
	s->time = now;
	return s->events;
}

// needed returns how many closes a pool must have had of late for a slot. So pools with few, as of a crawler, take half of a
// share at most, and the last quarter is for pools with many.
static __always_inline __u32 needed(struct share *s, __u32 limit)
{
	__u32 quarters = (s->taken - s->returned + 1) * 4 / limit;
	return quarters < 2 ? 1 : quarters == 2 ? 16 : 256;
}

// take returns the number of a slot for a new pool: a free one, if tenant and ancestor have not used up their shares.
static __always_inline __u32 take(struct table t, struct slot *new, struct net *net, struct cgroup *group)
{
	new->ancestor = ancestor_of(group, new->pool.cgroup);
	new->tenant = namespaces ? tenant_of(net, new->pool.namespace) : new->ancestor;
	const __u64 golden = 0x9e3779b97f4a7c15, hash = new->tenant * golden; // as hash_64 in include/linux/hash.h does
	new->tenant_share = hash >> (64 - SHARE_BITS);
	new->ancestor_share = (hash + 1 + new->ancestor) * golden >> (64 - SHARE_BITS); // so ancestor 0 has another share

	__u32 number = SHARES;
	struct share *limits = bpf_map_lookup_elem(t.shares, &number);
	if (!limits) // never
		return t.rest;
	struct share *of_tenant = available(t.shares, new->tenant_share, limits->taken);
	struct share *of_ancestor = available(t.shares, new->ancestor_share, limits->returned);
	if (!of_tenant || !of_ancestor)
		return t.rest;
	if (new->pool.call == CLOSE) {
		__u32 n = often(&new->pool);
		if (n < needed(of_tenant, limits->taken) || n < needed(of_ancestor, limits->returned))
			return t.rest;
	}
	if (bpf_map_pop_elem(t.free_slots, &number))
		return t.rest;
	struct slot *slot = bpf_map_lookup_elem(t.slots, &number);
	if (slot) // always
		__builtin_memcpy(slot, new, __builtin_offsetof(struct slot, events));
	if (bpf_map_update_elem(t.pools, &new->pool, &number, BPF_NOEXIST)) { // another CPU has just added the pool
		bpf_map_push_elem(t.free_slots, &number, BPF_ANY);
		__u32 *known = bpf_map_lookup_elem(t.pools, &new->pool);
		return known ? *known : t.rest;
	}
	__sync_fetch_and_add(&of_tenant->taken, 1);
	__sync_fetch_and_add(&of_ancestor->taken, 1);
	return number;
}

// count adds an event to a pool, of which addresses, port and call are set. It is one of the control group of the caller. But a
// close is one of the control group that made the socket (Linux 5.15), as sockets have it too: anybody can send a connection to a
// daemon, which then closes it, and a thread of the kernel can do so for a process that has ended.
static __always_inline void count(struct table t, struct slot *new, struct sock *sk, struct net *net)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cgroup *group = NULL;
	const bool deferred = BPF_CORE_READ(task, flags) & PF_KTHREAD;
	if ((deferred || new->pool.call == CLOSE) && bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		group = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	const __u64 own = bpf_get_current_cgroup_id();
	new->pool.cgroup = group ? BPF_CORE_READ(group, kn, id) : own;
	if (namespaces)
		new->pool.namespace = BPF_CORE_READ(net, net_cookie);
	__u32 *known = bpf_map_lookup_elem(t.pools, &new->pool);
	__u32 number = known ? *known : take(t, new, net, group);
	struct slot *slot = bpf_map_lookup_elem(t.slots, &number);
	if (!slot) // never
		return;
	if (!deferred && new->pool.cgroup == own) {
		struct task_struct *leader = BPF_CORE_READ(task, group_leader);
		bpf_core_read(slot->command, sizeof(slot->command), &leader->comm);
		slot->process = bpf_get_current_pid_tgid() >> 32;
	}
	__sync_fetch_and_add(&slot->events, 1);
}

// set_addresses sets the addresses of a pool.
static __always_inline void set_addresses(struct pool *pool, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET6) {
		BPF_CORE_READ_INTO(&pool->source, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&pool->destination, sk, __sk_common.skc_v6_daddr);
		return;
	}
	*(__u16 *)&pool->source[10] = 0xffff;
	*(__u32 *)&pool->source[12] = sk->__sk_common.skc_rcv_saddr;
	*(__u16 *)&pool->destination[10] = 0xffff;
	*(__u32 *)&pool->destination[12] = sk->__sk_common.skc_daddr;
}

// in_range tells whether a port is one that connect() chooses from in a network namespace.
static __always_inline bool in_range(struct net *net, __u16 port)
{
	struct net___locked *old = (void *)net;
	if (bpf_core_field_exists(old->ipv4.ip_local_ports.range))
		return port >= old->ipv4.ip_local_ports.range[0] && port <= old->ipv4.ip_local_ports.range[1];
	__u32 range = net->ipv4.ip_local_ports.range;
	return port >= (range & 0xffff) && port <= range >> 16;
}

// The kernel runs it at each change of state of each socket. So the checks that end it for most of these come first.
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int oldstate, int newstate)
{
	// Only close() and shutdown() bring a socket to FIN_WAIT1, and the end of its process. The second of these does it again.
	const bool closed = closes && newstate == BPF_TCP_FIN_WAIT1 && oldstate != BPF_TCP_FIN_WAIT1;
	const bool failed = oldstate == BPF_TCP_SYN_SENT && newstate == BPF_TCP_CLOSE;
	if ((!closed && !failed) || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	struct net *net = sk->__sk_common.skc_net.net;
	if (closed && !in_range(net, sk->__sk_common.skc_num))
		return 0; // one that a server accepted, mostly
	// One that had a port has lost it by now, but not this copy.
	if (failed && BPF_CORE_READ((struct inet_sock *)sk, inet_sport) != 0)
		return 0;
	struct slot new = {.pool.port = bpf_ntohs(sk->__sk_common.skc_dport), .pool.call = closed ? CLOSE : CONNECT};
	set_addresses(&new.pool, sk);
	if (closed)
		count(CLOSES, &new, sk, net);
	else
		count(FAILURES, &new, sk, net);
	return 0;
}

// count_bind counts a search for any port of the protocol that found none. The caller of the search has set the
// address of the socket, and clears it after a failure.
static __always_inline int count_bind(struct sock *sk, __u16 port, int failed, __u16 protocol)
{
	if (!failed || port != 0 || sk->sk_protocol != protocol)
		return 0;
	struct slot new = {.pool.call = protocol};
	if (sk->__sk_common.skc_family == AF_INET6) {
		BPF_CORE_READ_INTO(&new.pool.source, sk, __sk_common.skc_v6_rcv_saddr);
	} else {
		*(__u16 *)&new.pool.source[10] = 0xffff;
		*(__u32 *)&new.pool.source[12] = sk->__sk_common.skc_rcv_saddr;
	}
	struct table t = FAILURES;
	t.rest++;
	count(t, &new, sk, sk->__sk_common.skc_net.net);
	return 0;
}

// The kernel runs these two at each bind() and listen() of TCP, and whenever a socket of UDP gets a port.
SEC("fexit/inet_csk_get_port")
int BPF_PROG(tcp_bind_fail, struct sock *sk, __u16 port, int failed)
{
	return count_bind(sk, port, failed, IPPROTO_TCP);
}

SEC("fexit/udp_lib_get_port")
int BPF_PROG(udp_bind_fail, struct sock *sk, __u16 port, unsigned int hash, int failed)
{
	return count_bind(sk, port, failed, IPPROTO_UDP);
}

// User space runs these two with the number of a slot, and whether it is one of closes.
static __always_inline int unlink_from(struct table t, __u32 number)
{
	struct slot *slot = bpf_map_lookup_elem(t.slots, &number);
	return slot ? bpf_map_delete_elem(t.pools, &slot->pool) : 0;
}

SEC("raw_tp")
int unlink(struct bpf_raw_tracepoint_args *ctx) // removes its pool
{
	return ctx->args[1] ? unlink_from(CLOSES, ctx->args[0]) : unlink_from(FAILURES, ctx->args[0]);
}

SEC("raw_tp")
int release(struct bpf_raw_tracepoint_args *ctx) // makes a slot free
{
	__u32 number = ctx->args[0];
	return ctx->args[1] ? bpf_map_push_elem(&close_free, &number, BPF_ANY) : bpf_map_push_elem(&fail_free, &number, BPF_ANY);
}

char __license[] SEC("license") = "Dual MIT/GPL"; // bpf_probe_read_kernel is only for licenses that the GPL is compatible with
