// SPDX-License-Identifier: MIT OR GPL-2.0

// The members of the kernel's structures that the programs read. Where they lie differs between
// kernels: the loader looks them up in the description of the running one (CO-RE).
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};

struct user_namespace {
	struct user_namespace *parent;
	int level; // 0 for the initial one
	struct {
		__u32 val;
	} owner; // the user who made it, in the initial one
	struct {
		unsigned int inum;
	} ns;
};

// Linux 6.8: both ends of the range, the higher one in the upper half.
struct local_ports {
	__u32 range;
};

// Before, with a lock.
struct local_ports___locked {
	int range[2];
};

struct netns_ipv4 {
	struct local_ports ip_local_ports;
};

struct netns_ipv4___locked {
	struct local_ports___locked ip_local_ports;
};

struct net {
	__u64 net_cookie; // Linux 5.12
	struct user_namespace *user_ns;
	struct netns_ipv4 ipv4;
};

struct net___locked {
	struct netns_ipv4___locked ipv4;
};

// What all sockets begin with. skc_num is in the byte order of the host, the other port and the addresses
// are in network byte order.
struct sock_common {
	__u32 skc_daddr, skc_rcv_saddr;
	__u16 skc_dport, skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_ipv6only : 1;
	int skc_bound_dev_if;
	struct {
		struct net *net;
	} skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self; // its parent is that of the parent
	int level; // 0 for the root
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup; // Linux 5.15, with CONFIG_SOCK_CGROUP_DATA
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol; // no bit field since Linux 5.6
	struct sock_cgroup_data sk_cgrp_data;
};

struct task_struct {
	unsigned int flags; // PF_
	struct task_struct *group_leader;
	char comm[16];
};

struct inet_sock {
	__u16 inet_sport; // that it had last, in network byte order
};

struct inet_bind_bucket {
	signed char fastreuse, fastreuseport;
};

struct inet_connection_sock {
	struct inet_bind_bucket *icsk_bind_hash;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
};

struct timer_list {
	unsigned long expires;
};

struct inet_timewait_sock {
	unsigned char tw_substate; // TIME_WAIT or FIN_WAIT2
	struct timer_list tw_timer;
	struct inet_bind_bucket *tw_tb;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	int tw_ts_recent_stamp;
};

// The context of a BPF iterator over TCP sockets.
struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

#pragma clang attribute pop
