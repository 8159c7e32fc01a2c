//go:build linux

package trace

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// Errors of what the program cannot tell.
var (
	errNoNamespaces = errors.New("the kernel does not tell the network namespace of a socket: it needs Linux 5.12 for 64 bits")
	errNoAncestors  = errors.New("the kernel does not tell eBPF programs the ancestor of a control group: it needs Linux 5.14, or one with bpf_get_current_ancestor_cgroup_id for tracing programs")
	errNoBinds      = errors.New("the kernel lets no eBPF programs run at the end of its functions (fexit): it needs Linux 5.5 on x86, 6.4 on arm64, with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS")
	errNoCloses     = errors.New("the range of ports is not where known kernels have it")
)

// checkNamespaces returns errNoNamespaces if the kernel does not number network namespaces. Before Linux 5.12,
// net_cookie is no number, and mostly not set.
func checkNamespaces() error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoNamespaces, err)
	}
	var net *btf.Struct
	if err := spec.TypeByName("net", &net); err != nil {
		return fmt.Errorf("%w: %w", errNoNamespaces, err)
	}
	for _, m := range net.Members {
		if _, number := btf.UnderlyingType(m.Type).(*btf.Int); number && m.Name == "net_cookie" && bits.UintSize == 64 {
			return nil
		}
	}
	return errNoNamespaces
}

// checkRange returns errNoCloses if the program cannot read the range of ephemeral ports of a network namespace
// (sysctl ip_local_port_range), which tells clients from servers: one number since Linux 6.8, two before.
func checkRange() error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoCloses, err)
	}
	var at btf.Type
	var net *btf.Struct
	if err := spec.TypeByName("net", &net); err != nil {
		return fmt.Errorf("%w: %w", errNoCloses, err)
	}
	at = net
	for _, name := range []string{"ipv4", "ip_local_ports", "range"} {
		in, ok := btf.UnderlyingType(at).(*btf.Struct)
		if !ok {
			return errNoCloses
		}
		i := slices.IndexFunc(in.Members, func(m btf.Member) bool { return m.Name == name })
		if i < 0 {
			return errNoCloses
		}
		at = in.Members[i].Type
	}
	switch r := btf.UnderlyingType(at).(type) {
	case *btf.Int:
		if r.Size == 4 {
			return nil
		}
	case *btf.Array:
		if n, ok := btf.UnderlyingType(r.Type).(*btf.Int); ok && n.Size == 4 && r.Nelems == 2 {
			return nil
		}
	}
	return errNoCloses
}

// checkAncestors returns errNoAncestors if the program may not call bpf_get_current_ancestor_cgroup_id.
func checkAncestors() error {
	if err := features.HaveProgramHelper(ebpf.TracePoint, asm.FnGetCurrentAncestorCgroupId); err != nil {
		return fmt.Errorf("%w: %w", errNoAncestors, err)
	}
	return nil
}
