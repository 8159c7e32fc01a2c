//go:build linux

package connectfail

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/bpf"
)

// TableSize is the number of pools that a Probe counts separately.
const TableSize = 4096

// bpfName is the name of the program and its maps in bpftool(8).
const bpfName = "connect_fail"

// license is what the program declares: the kernel lets only programs with a license that is
// compatible with the GPL call bpf_probe_read_kernel.
const license = "Dual MIT/GPL"

// A Probe counts from Attach until Close, or until the process ends, even if it is killed.
type Probe struct {
	maps
	table   *table
	program *ebpf.Program
	event   int // the perf event that the program is attached to, -1 before

	// NoNamespaces says why the Namespace of each Count is 0, and each ancestor is a tenant.
	// It is nil if the program knows the network namespaces.
	NoNamespaces error

	// NoAncestors says why the Ancestor of each Count is its Cgroup. It is nil if the program knows
	// the ancestors of control groups.
	NoAncestors error
}

// maps are the maps of the program.
//
// Once the program is attached, user space uses shared memory, or programs of its own that it runs
// once (BPF_PROG_TEST_RUN), and no bpf(2) on maps. While bpf(2) reads or writes a value of a map, the
// kernel skips tracing programs on that CPU (bpf_disable_instrumentation). If the caller is
// preempted there (CONFIG_PREEMPT, preempt=full), failures of other processes are not counted.
type maps struct {
	index  *ebpf.Map // hash from a pool to the number of its slot
	slots  *ebpf.Map // array of slots, shared with user space, see slotSize; the last counts all pools without a slot
	free   *ebpf.Map // queue of the numbers of free slots
	shares *ebpf.Map // array of shares, shared with user space, see shareSize
}

// Attach starts to count, on the whole host. It needs CAP_BPF and CAP_PERFMON. It also needs
// tracefs, which only root or a process with CAP_DAC_READ_SEARCH may read. The error names what is
// missing. It is fs.ErrPermission, fs.ErrNotExist if tracefs is not mounted, or ErrUnsupported.
func Attach() (*Probe, error) { return attach(TableSize) }

// attach is Attach with a table of any size.
func attach(tableSize uint32) (*Probe, error) {
	id, format, err := readTracepoint()
	if missing := missingCapabilities(err); missing != nil {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("connectfail: %w", err)
	}
	l, err := parseLayout(format)
	if err != nil {
		return nil, fmt.Errorf("connectfail: %w", err)
	}
	bpf.RaiseMemlock()
	p, err := newProbe(tableSize)
	if err != nil {
		return nil, err
	}
	var s *structs
	if l.socket.size == 8 {
		s, p.NoNamespaces = readStructs()
	} else {
		p.NoNamespaces = fmt.Errorf("%w on 64 bits", errNoNamespaces)
	}
	p.NoAncestors = checkAncestors()
	p.program, err = ebpf.NewProgram(p.spec(l, s))
	if err != nil {
		p.Close()
		return nil, explain("load a BPF program", err)
	}
	if p.event, err = openEvent(id); err != nil {
		p.Close()
		return nil, explainEvent(err)
	}
	if err := unix.IoctlSetInt(p.event, unix.PERF_EVENT_IOC_SET_BPF, p.program.FD()); err != nil {
		p.Close()
		return nil, explain(attaching, err)
	}
	return p, nil
}

// openEvent opens the perf event of a tracepoint. Programs are attached to it. It stays disabled:
// programs run all the same, and perf itself has no work with it.
//
// A program sees the events of all CPUs, but a perf event must be opened on one that is online.
func openEvent(id uint64) (fd int, err error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_TRACEPOINT, Size: unix.PERF_ATTR_SIZE_VER0, Config: id, Bits: unix.PerfBitDisabled,
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return -1, os.NewSyscallError("sched_getaffinity", err)
	}
	err = unix.ENODEV
	for cpu := 0; cpu < len(cpus)*bits.UintSize && errors.Is(err, unix.ENODEV); cpu++ {
		if !cpus.IsSet(cpu) {
			continue
		}
		const allProcesses, noGroup = -1, -1
		fd, err = unix.PerfEventOpen(&attr, allProcesses, cpu, noGroup, unix.PERF_FLAG_FD_CLOEXEC)
	}
	return fd, err
}

// newProbe returns a Probe with maps and without a program.
func newProbe(tableSize uint32) (*Probe, error) {
	p := &Probe{event: -1}
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&p.index, ebpf.MapSpec{Type: ebpf.Hash, KeySize: poolSize, ValueSize: 4, MaxEntries: tableSize}},
		{&p.slots, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: slotSize, MaxEntries: tableSize + 1, Flags: unix.BPF_F_MMAPABLE}},
		{&p.free, ebpf.MapSpec{Type: ebpf.Queue, ValueSize: 4, MaxEntries: tableSize}},
		{&p.shares, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: shareSize, MaxEntries: shares + 1, Flags: unix.BPF_F_MMAPABLE}},
	} {
		m.spec.Name = bpfName
		made, err := ebpf.NewMap(&m.spec)
		if err != nil {
			p.Close()
			return nil, explain("make a BPF map", err)
		}
		*m.to = made
	}
	for i := range tableSize {
		if err := p.free.Put(nil, i); err != nil {
			p.Close()
			return nil, explain("fill a BPF map", err)
		}
	}
	var err error
	if p.table, err = newTable(p.maps); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// spec returns the specification of the program.
func (p *Probe) spec(l layout, s *structs) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: bpfName, Type: ebpf.TracePoint, License: license, Instructions: instructions(l, p.maps, s, p.NoAncestors == nil)}
}

// errNoAncestors means that the program cannot tell the ancestor of a control group.
var errNoAncestors = errors.New("the kernel does not tell eBPF programs the ancestor of a control group: it needs Linux 5.14, or one with bpf_get_current_ancestor_cgroup_id for tracing programs")

// checkAncestors returns errNoAncestors if the program cannot tell the ancestor of a control group.
func checkAncestors() error {
	if err := features.HaveProgramHelper(ebpf.TracePoint, asm.FnGetCurrentAncestorCgroupId); err != nil {
		return fmt.Errorf("%w: %w", errNoAncestors, err)
	}
	return nil
}

// Counts returns the failures since the last call, or since Attach: those of each pool that had
// some, in no order, and those of all pools without a slot.
func (p *Probe) Counts(now time.Time) (counts []Count, rest uint64, err error) {
	return p.table.read(now)
}

// Reclaim frees the slots of pools in which no connect() failed for IdleTime, or whose tenants have
// more than their share. It is to be called after Counts. No failure is lost or counted twice.
func (p *Probe) Reclaim(now time.Time) error { return p.table.reclaim(now) }

// Utilization is the part of the slots that is not free, as of the last call of Counts or Reclaim.
func (p *Probe) Utilization() float64 { return p.table.utilization() }

// MissedRuns returns how often the kernel did not run the program because another BPF program, or a
// call of bpf(2), was in progress on that CPU (recursion_misses). Each of these is a change of
// state of a socket, and few are failures. ok is false before Linux 6.7, which does not count them.
func (p *Probe) MissedRuns() (n uint64, ok bool, err error) {
	version, err := features.LinuxVersionCode()
	if err != nil {
		return 0, false, fmt.Errorf("connectfail: read the version of the kernel: %w", err)
	}
	if version < 6<<16|7<<8 {
		return 0, false, nil
	}
	stats, err := p.program.Stats()
	if err != nil {
		return 0, false, explain("read the statistics of a BPF program", err)
	}
	return stats.RecursionMisses, true, nil
}

// Close stops counting.
func (p *Probe) Close() error {
	var err error
	if p.event >= 0 {
		err = unix.Close(p.event)
		p.event = -1
	}
	// Close of a nil map or program does nothing.
	return errors.Join(err, p.program.Close(), p.table.close(), p.index.Close(), p.slots.Close(), p.free.Close(), p.shares.Close())
}
