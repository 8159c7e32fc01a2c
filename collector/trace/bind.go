//go:build linux

package trace

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// bindPrograms count binds. They run at the end of the functions that search for a port: of TCP inet_csk_get_port, and of
// UDP udp_lib_get_port. These are exported to modules, so the compiler keeps them, and calls them by pointers or from
// other files. Only trampolines of BPF run programs there with the arguments and the result: fexit, Linux 5.5 on x86, 6.4
// on arm64, with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS.
type bindPrograms struct {
	TCP *ebpf.Program `ebpf:"tcp_bind_fail"`
	UDP *ebpf.Program `ebpf:"udp_bind_fail"`

	links []link.Link
}

// programs returns those that are attached.
func (b *bindPrograms) programs() []*ebpf.Program {
	if len(b.links) == 0 {
		return nil
	}
	return []*ebpf.Program{b.TCP, b.UDP}
}

// attach loads and attaches both programs, or none. They use the maps of the other objects.
func (b *bindPrograms) attach(spec *ebpf.CollectionSpec, o *objects) error {
	err := spec.LoadAndAssign(b, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpfMapFailFree: o.FailFree, bpfMapFailPools: o.FailPools, bpfMapFailShares: o.FailShares, bpfMapFailSlots: o.FailSlots,
	}})
	if err != nil {
		return noBinds(err)
	}
	for _, program := range []*ebpf.Program{b.TCP, b.UDP} {
		attached, err := link.AttachTracing(link.TracingOptions{Program: program})
		if err != nil {
			return errors.Join(noBinds(err), b.close())
		}
		b.links = append(b.links, attached)
	}
	return nil
}

// noBinds returns errNoBinds with what the kernel said to loading or attaching a program.
func noBinds(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) && errors.Is(err, fs.ErrPermission) {
		err = errno // the text of the library blames RLIMIT_MEMLOCK on all kernels
	}
	return fmt.Errorf("%w: %w", errNoBinds, err)
}

// close detaches the programs.
func (b *bindPrograms) close() error {
	var err error
	for _, l := range b.links {
		err = errors.Join(err, l.Close())
	}
	b.links = nil
	return errors.Join(err, b.TCP.Close(), b.UDP.Close())
}
