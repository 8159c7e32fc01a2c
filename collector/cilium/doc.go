// Package cilium lists the connections to which Cilium's eBPF datapath gave a port of the host: masquerading, egress gateways, and
// services of the node. They are in maps that its agent pins in a BPF file system. Connection tracking of the kernel has no such
// flows.
//
// It decodes these maps, whose layout is the same in Cilium 1.15 to 1.20 (struct ipv4_ct_tuple, ipv4_nat_entry and ct_entry of bpf/lib).
// What the flows mean for ports is computed in package snat.
//
// It is not github.com/cilium/cilium/pkg/maps/nat, which has the agent behind it: hundreds of packages.
package cilium
