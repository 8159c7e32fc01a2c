//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
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
	__u64 failures; // the last member
};

struct share {
	__u32 taken, returned; // in the last share: the limits of a tenant and of an ancestor
};

#define AF_INET6 10
#define CONNECT 1 // a call; the others are the protocols of sockets that are bound

#define SHARE_BITS 16
#define SHARES (1 << SHARE_BITS)
#define TENANT_USER (1ULL << 62)
#define TENANT_USER_NS (1ULL << 61)
#define MAX_USER_NS_LEVELS 33 // see create_user_ns in kernel/user_namespace.c

// User space sets how many slots there are.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct pool);
	__type(value, __u32); // the number of its slot
} pools SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__type(value, __u32);
} free_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SHARES + 1);
	__type(key, __u32);
	__type(value, struct share);
} shares SEC(".maps");

volatile const __u32 rest;      // the number of the last slot but one, for connects without a slot of their own; the next one is for binds
volatile const bool namespaces; // whether the kernel has net_cookie (Linux 5.12)
volatile const bool ancestors;  // whether it has bpf_get_current_ancestor_cgroup_id for this program (Linux 5.14)

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

// available returns a share unless it is used up. Two CPUs can pass this at once, for one slot too many each.
static __always_inline struct share *available(__u32 number, __u32 limit)
{
	struct share *s = bpf_map_lookup_elem(&shares, &number);
	return s && s->taken - s->returned < limit ? s : NULL;
}

// take returns the number of a slot for a new pool: a free one, if tenant and ancestor have not used up their shares.
static __always_inline __u32 take(struct slot *new, struct net *net)
{
	// A service of systemd, or the slice of a user, who can make any number of control groups below that.
	new->ancestor = !ancestors ? new->pool.cgroup : bpf_get_current_ancestor_cgroup_id(2) ?: bpf_get_current_ancestor_cgroup_id(1);
	new->tenant = namespaces ? tenant_of(net, new->pool.namespace) : new->ancestor;
	const __u64 golden = 0x9e3779b97f4a7c15, hash = new->tenant * golden; // as hash_64 in include/linux/hash.h does
	new->tenant_share = hash >> (64 - SHARE_BITS);
	new->ancestor_share = (hash + 1 + new->ancestor) * golden >> (64 - SHARE_BITS); // so ancestor 0 has another share

	const __u32 none = new->pool.call == CONNECT ? rest : rest + 1;
	__u32 number = SHARES;
	struct share *limits = bpf_map_lookup_elem(&shares, &number);
	if (!limits) // never
		return none;
	struct share *of_tenant = available(new->tenant_share, limits->taken);
	struct share *of_ancestor = available(new->ancestor_share, limits->returned);
	if (!of_tenant || !of_ancestor || bpf_map_pop_elem(&free_slots, &number))
		return none;
	struct slot *slot = bpf_map_lookup_elem(&slots, &number);
	if (slot) // always
		__builtin_memcpy(slot, new, __builtin_offsetof(struct slot, failures));
	if (bpf_map_update_elem(&pools, &new->pool, &number, BPF_NOEXIST)) { // another CPU has just added the pool
		bpf_map_push_elem(&free_slots, &number, BPF_ANY);
		__u32 *known = bpf_map_lookup_elem(&pools, &new->pool);
		return known ? *known : none;
	}
	__sync_fetch_and_add(&of_tenant->taken, 1);
	__sync_fetch_and_add(&of_ancestor->taken, 1);
	return number;
}

// count adds a failure to a pool, of which addresses, port and call are set.
static __always_inline void count(struct slot *new, struct net *net)
{
	new->pool.cgroup = bpf_get_current_cgroup_id();
	if (namespaces)
		new->pool.namespace = BPF_CORE_READ(net, net_cookie);
	__u32 *known = bpf_map_lookup_elem(&pools, &new->pool);
	__u32 number = known ? *known : take(new, net);
	struct slot *slot = bpf_map_lookup_elem(&slots, &number);
	if (slot)
		__sync_fetch_and_add(&slot->failures, 1);
}

// The kernel runs it at each change of state of each socket. So the checks that end it for most of these come first.
SEC("tracepoint/sock/inet_sock_set_state")
int connect_fail(struct trace_event_raw_inet_sock_set_state *ctx)
{
	if (ctx->oldstate != BPF_TCP_SYN_SENT || ctx->newstate != BPF_TCP_CLOSE || ctx->sport != 0 || ctx->protocol != IPPROTO_TCP)
		return 1; // 0 would hide the event from perf(1)
	struct slot new = {.pool.port = ctx->dport, .pool.call = CONNECT};
	bpf_core_read(new.pool.source, sizeof(new.pool.source), &ctx->saddr_v6);
	bpf_core_read(new.pool.destination, sizeof(new.pool.destination), &ctx->daddr_v6);
	count(&new, BPF_CORE_READ((struct sock *)ctx->skaddr, __sk_common.skc_net.net));
	return 1;
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
	count(&new, sk->__sk_common.skc_net.net);
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

// User space runs these two with the number of a slot.
SEC("raw_tp")
int unlink(struct bpf_raw_tracepoint_args *ctx) // removes its pool
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &(__u32){ctx->args[0]});
	return slot ? bpf_map_delete_elem(&pools, &slot->pool) : 0;
}

SEC("raw_tp")
int release(struct bpf_raw_tracepoint_args *ctx) // makes a slot free
{
	return bpf_map_push_elem(&free_slots, &(__u32){ctx->args[0]}, BPF_ANY);
}

char __license[] SEC("license") = "Dual MIT/GPL"; // bpf_probe_read_kernel is only for licenses that the GPL is compatible with
