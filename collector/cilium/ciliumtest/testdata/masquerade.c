// The source NAT of Cilium's datapath for one packet, by the headers of Cilium's module. VERSION is 20 for Cilium 1.20.
#include <bpf/ctx/skb.h>
#include <bpf/api.h>

#define ENABLE_IPV4
#define ENABLE_NODEPORT
#define ENABLE_MASQUERADE_IPV4

#if VERSION >= 20
#define ENABLE_IPV6
#define ENABLE_MASQUERADE_IPV6
#include <bpf/config/global.h>
#include <bpf/config/node.h>
ASSIGN_CONFIG(__u16, nodeport_port_min, 30000)
ASSIGN_CONFIG(__u16, nodeport_port_max, 32767)
#else
#if VERSION >= 18
#include <bpf/config/node.h>
#define THIS_INTERFACE_MAC {} // for IPv6 only, which is not compiled
#else
#include <node_config.h>
#endif
#undef NODEPORT_PORT_MAX_NAT
#define NODEPORT_PORT_MAX_NAT 65535 // as the agent has it, for all versions
#endif

#include <lib/dbg.h>
#include <lib/eps.h>
#include <lib/nat.h>
#include <lib/time.h>

// masquerade4 translates the source of a packet of a pod to 198.51.100.1. It returns a reason if that is not possible.
static __always_inline int masquerade4(struct __ctx_buff *ctx)
{
	struct ipv4_nat_target target = {
		.addr = bpf_htonl(0xc6336401),
		.min_port = NODEPORT_PORT_MIN_NAT,
		.max_port = NODEPORT_PORT_MAX_NAT,
		.from_local_endpoint = true,
	};
	struct ipv4_ct_tuple tuple = {};
	struct trace_ctx trace = {};
	void *data, *data_end;
	struct iphdr *ip4;

	if (!revalidate_data(ctx, &data, &data_end, &ip4))
		return DROP_INVALID;
	snat_v4_init_tuple(ip4, NAT_DIR_EGRESS, &tuple);
#if VERSION >= 18
	return snat_v4_nat(ctx, &tuple, ip4, ipfrag_encode_ipv4(ip4), ETH_HLEN + ipv4_hdrlen(ip4), &target, &trace, NULL);
#else
	return snat_v4_nat(ctx, &tuple, ip4, ETH_HLEN + ipv4_hdrlen(ip4), true, &target, &trace, NULL);
#endif
}

#if VERSION >= 20
// masquerade6 is masquerade4 for IPv6, to 2001:db8:5::1.
static __always_inline int masquerade6(struct __ctx_buff *ctx)
{
	struct snat_v6_args *args = AUX(snat_v6_args);
	void *data, *data_end;
	struct ipv6hdr *ip6;

	if (!revalidate_data(ctx, &data, &data_end, &ip6))
		return DROP_INVALID;
	memset(args, 0, sizeof(*args));
	args->target.addr.p1 = bpf_htonl(0x20010db8);
	args->target.addr.p2 = bpf_htonl(0x00050000);
	args->target.addr.p4 = bpf_htonl(1);
	args->target.min_port = NODEPORT_PORT_MIN_NAT;
	args->target.max_port = NODEPORT_PORT_MAX_NAT;
	args->target.from_local_endpoint = true;
	snat_v6_init_tuple(ip6, NAT_DIR_EGRESS, &args->tuple);
	args->tuple.nexthdr = ip6->nexthdr;
	return snat_v6_nat(ctx, 0, ETH_HLEN + sizeof(*ip6), NULL);
}
#endif

__section("tc")
int masquerade(struct __ctx_buff *ctx)
{
#if VERSION >= 20
	if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		return masquerade6(ctx);
#endif
	return masquerade4(ctx);
}

BPF_LICENSE("Dual BSD/GPL");
