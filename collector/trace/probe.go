//go:build linux

package trace

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"

	"ephemeral_port_exporter/collector/internal/bpf"
)

// TableSize is the number of pools that each Table of a Probe counts separately.
const TableSize = 4096

// A Probe counts from Attach until Close, or until the process ends, even if it is killed.
type Probe struct {
	Failures *Table // of connect() and bind() that found no port
	Closes   *Table // of connections that this host closed first, on a port of the range

	objects objects
	state   link.Link // of the program to the tracepoint; nil before
	binds   bindPrograms

	// NoNamespaces says why the Namespace of each Count is 0, and each ancestor is a tenant.
	// It is nil if the program knows the network namespaces.
	NoNamespaces error

	// NoAncestors says why the Ancestor of each Count is its Cgroup. It is nil if the program knows
	// the ancestors of control groups.
	NoAncestors error

	// NoBinds says why failed binds are not counted. It is nil if they are.
	NoBinds error

	// NoCloses says why closes are not counted. It is nil if they are.
	NoCloses error
}

// objects are the maps, and the programs that need no functions of the kernel with trampolines.
type objects struct {
	bpfMaps
	SetState *ebpf.Program `ebpf:"set_state"`
	Release  *ebpf.Program `ebpf:"release"`
	Unlink   *ebpf.Program `ebpf:"unlink"`
}

func (o *objects) close() error {
	return errors.Join(o.SetState.Close(), o.Release.Close(), o.Unlink.Close(), o.Close()) // the last one closes the maps
}

// Attach starts to count, on the whole host. It needs CAP_BPF and CAP_PERFMON, and BTF. The error names what is
// missing. It is fs.ErrPermission, fs.ErrNotExist if there is no BTF, or ErrUnsupported.
//
// Once the program is attached, user space uses shared memory, or programs of its own that it runs
// once (BPF_PROG_TEST_RUN), and no bpf(2) on maps.
func Attach() (*Probe, error) { return attach(TableSize) }

// attach is Attach with a table of any size.
func attach(tableSize uint32) (*Probe, error) {
	if err := missingCapabilities(); err != nil {
		return nil, err
	}
	if err := bpf.CheckBTF(); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	bpf.RaiseMemlock()
	noNamespaces, noAncestors, noCloses := checkNamespaces(), checkAncestors(), checkRange()
	spec, err := newSpec(tableSize, noNamespaces == nil, noAncestors == nil, noCloses == nil)
	if err != nil {
		return nil, err
	}
	p, err := newProbe(spec)
	if err != nil {
		return nil, err
	}
	p.NoNamespaces, p.NoAncestors, p.NoCloses = noNamespaces, noAncestors, noCloses
	if p.state, err = link.AttachTracing(link.TracingOptions{Program: p.objects.SetState}); err != nil {
		p.Close()
		return nil, explain("attach to tracepoint inet_sock_set_state", err)
	}
	p.NoBinds = p.binds.attach(spec, &p.objects)
	return p, nil
}

// newSpec returns the specification of the programs and maps, with tables of that size.
func newSpec(tableSize uint32, namespaces, ancestors, closes bool) (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	var objects bpfSpecs
	if err := spec.Assign(&objects); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	for _, m := range []*ebpf.MapSpec{objects.FailPools, objects.FailFree, objects.ClosePools, objects.CloseFree} {
		m.MaxEntries = tableSize
	}
	objects.FailSlots.MaxEntries, objects.CloseSlots.MaxEntries = tableSize+slotsOfRest, tableSize+slotsOfRest
	if err := errors.Join(objects.FailRest.Set(tableSize), objects.CloseRest.Set(tableSize),
		objects.Namespaces.Set(namespaces), objects.Ancestors.Set(ancestors), objects.Closes.Set(closes)); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	return spec, nil
}

// newProbe returns a Probe that is not attached to the tracepoint.
func newProbe(spec *ebpf.CollectionSpec) (*Probe, error) {
	p := &Probe{}
	if err := spec.LoadAndAssign(&p.objects, nil); err != nil {
		return nil, explain("load the BPF programs", err)
	}
	err := errors.Join(fill(p.objects.FailFree), fill(p.objects.CloseFree))
	if err == nil {
		p.Failures, err = newTable(false, p.objects.FailSlots, p.objects.FailShares, p.objects.Unlink, p.objects.Release)
	}
	if err == nil {
		p.Closes, err = newTable(true, p.objects.CloseSlots, p.objects.CloseShares, p.objects.Unlink, p.objects.Release)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// fill makes all slots free.
func fill(free *ebpf.Map) error {
	for i := range free.MaxEntries() {
		if err := free.Put(nil, i); err != nil {
			return explain("fill a BPF map", err)
		}
	}
	return nil
}

// MissedRuns returns how often the kernel did not run a program because the same program was in progress on that CPU
// (recursion_misses). Each of these is a change of state of a socket, or a bind, of which few are counted. ok is false before
// Linux 6.1: before 5.12, the kernel does not count them.
func (p *Probe) MissedRuns() (n uint64, ok bool, err error) {
	version, err := features.LinuxVersionCode()
	if err != nil {
		return 0, false, fmt.Errorf("trace: read the version of the kernel: %w", err)
	}
	if version < 6<<16|1<<8 {
		return 0, false, nil
	}
	for _, program := range append(p.binds.programs(), p.objects.SetState) {
		stats, err := program.Stats()
		if err != nil {
			return 0, false, explain("read the statistics of a BPF program", err)
		}
		n += stats.RecursionMisses
	}
	return n, true, nil
}

// Close stops counting.
func (p *Probe) Close() error {
	var err error
	if p.state != nil {
		err = p.state.Close()
		p.state = nil
	}
	return errors.Join(err, p.binds.close(), p.objects.close())
}
