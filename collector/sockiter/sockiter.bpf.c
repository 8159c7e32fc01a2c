//go:build ignore

// SPDX-License-Identifier: GPL-2.0
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "../internal/bpf/kernel.h"

#define AF_INET6 10

enum { BOUND = 1, MINI = 2, V6ONLY = 4 };

// A record describes one socket, see record.go.
struct record {
	__u8 state, flags;
	__u16 port, remote_port, unused;
	__u32 interface, expires;
	__u32 local[4], remote[4]; // IPv6 or IPv4-mapped
	__u64 cgroup;
	__u32 stamp, unused2;
};

// The range of local ports to list.
volatile __u16 low, high;

// connect() makes a bucket with two negative numbers.
static __always_inline __u8 bound(struct inet_bind_bucket *bucket)
{
	return bucket->fastreuse < 0 && bucket->fastreuseport < 0 ? 0 : BOUND;
}

#define COPY(to, from) ((to)[0] = (from)[0], (to)[1] = (from)[1], (to)[2] = (from)[2], (to)[3] = (from)[3])

// The kernel runs it for each TCP socket. It leaves out a socket without a bucket: that has just given its
// port back.
SEC("iter/tcp")
int tcp_sockets(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	if (!sk) // after the last socket
		return 0;
	__u16 port = sk->skc_num;
	if (port < low || port > high)
		return 0;

	struct record r = {.state = sk->skc_state, .port = port};
	struct inet_bind_bucket *bucket;
	if (r.state == BPF_TCP_TIME_WAIT) { // and FIN_WAIT2 mini-sockets
		struct tcp_timewait_sock *tw = bpf_skc_to_tcp_timewait_sock(sk);
		if (!tw || !(bucket = tw->tw_sk.tw_tb))
			return 0;
		r.state = tw->tw_sk.tw_substate;
		r.stamp = tw->tw_ts_recent_stamp;
		r.flags = MINI | bound(bucket);
		__s64 left = tw->tw_sk.tw_timer.expires - bpf_jiffies64();
		r.expires = left < 0 ? 0 : left;
	} else if (r.state == BPF_TCP_NEW_SYN_RECV) { // not yet accepted: it has no bucket, that of its listener is bound
		r.state = BPF_TCP_SYN_RECV;
		r.flags = BOUND;
	} else {
		struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
		if (!tcp || !(bucket = tcp->inet_conn.icsk_bind_hash))
			return 0;
		r.flags = bound(bucket);
		if (bpf_core_field_exists(struct sock, sk_cgrp_data.cgroup)) // a pointer that is not valid reads as 0
			r.cgroup = ((struct sock *)tcp)->sk_cgrp_data.cgroup->kn->id;
	}

	if (sk->skc_family == AF_INET6) {
		COPY(r.local, sk->skc_v6_rcv_saddr.in6_u.u6_addr32);
		COPY(r.remote, sk->skc_v6_daddr.in6_u.u6_addr32);
		r.flags |= BPF_CORE_READ_BITFIELD(sk, skc_ipv6only) ? V6ONLY : 0;
	} else {
		r.local[2] = r.remote[2] = bpf_htonl(0xffff);
		r.local[3] = sk->skc_rcv_saddr;
		r.remote[3] = sk->skc_daddr;
	}
	r.remote_port = sk->skc_dport;
	r.interface = sk->skc_bound_dev_if;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r)); // if the buffer is full, the kernel runs this for the socket again
	return 0;
}

char __license[] SEC("license") = "GPL"; // bpf_seq_write is only for programs under it
