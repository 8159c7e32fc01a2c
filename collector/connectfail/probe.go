//go:build linux

package connectfail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TableSize is the number of pools that a Probe counts separately.
const TableSize = 4096

// bpfName is the name of the program and its maps in bpftool(8).
const bpfName = "connect_fail"

// A Count is the number of connects that failed in one pool of ports, in all network namespaces
// together.
type Count struct {
	Source      netip.Addr     // without a zone
	Destination netip.AddrPort // without a zone
	Failures    uint64         // never falls
}

// A Probe counts from Attach until Close, or until the process ends, even if it is killed.
type Probe struct {
	maps
	memory  *ebpf.Memory // of the map slots
	program *ebpf.Program
	event   int // the perf event that the program is attached to, -1 before
}

// maps are the maps of the program.
//
// Failures are read from shared memory, not with bpf(2). While bpf(2) reads or writes a value of a
// map, the kernel skips tracing programs on that CPU (bpf_disable_instrumentation). If the caller
// is preempted there (CONFIG_PREEMPT, preempt=full), failures of other processes are not counted.
type maps struct {
	index *ebpf.Map // hash from a pool to the number of its slot
	slots *ebpf.Map // array of slots, shared with the kernel, see slotSize; the last counts all pools without a slot
	free  *ebpf.Map // queue of the numbers of free slots
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
	p, err := newProbe(tableSize)
	if err != nil {
		return nil, err
	}
	p.program, err = ebpf.NewProgram(p.spec(l))
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
	if p.memory, err = p.slots.Memory(); err != nil {
		p.Close()
		return nil, explain("share a BPF map", err)
	}
	return p, nil
}

// spec returns the specification of the program.
func (p *Probe) spec(l layout) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: bpfName, Type: ebpf.TracePoint, Instructions: instructions(l, p.maps)}
}

// Counts returns the failures of each pool since Attach, in no order. rest is the number of
// failures in all other pools: a Probe counts only the first TableSize pools separately.
func (p *Probe) Counts() (counts []Count, rest uint64, err error) {
	var slot [slotSize]byte
	last := p.slots.MaxEntries() - 1
	for i := range last {
		// Read the failures first: the program stores the pool of a slot before it counts.
		n, err := p.readFailures(i, slot[slotFailures:])
		if err != nil {
			return nil, 0, err
		}
		if n == 0 {
			continue
		}
		if _, err := p.memory.ReadAt(slot[:poolSize], int64(i)*slotSize); err != nil {
			return nil, 0, fmt.Errorf("connectfail: read slot %d: %w", i, err)
		}
		source := decodeAddress(slot[slotSource:])
		if source.IsUnspecified() {
			continue // on a CPU that stores out of order, the pool may be late: the next call counts it
		}
		port := uint16(binary.NativeEndian.Uint64(slot[slotPort:]))
		counts = append(counts, Count{
			Source:      source,
			Destination: netip.AddrPortFrom(decodeAddress(slot[slotDest:]), port),
			Failures:    n,
		})
	}
	rest, err = p.readFailures(last, slot[slotFailures:])
	return counts, rest, err
}

// readFailures returns the failures of a slot. It reads all 8 bytes at once into buffer.
func (p *Probe) readFailures(slot uint32, buffer []byte) (uint64, error) {
	if _, err := p.memory.ReadAt(buffer, int64(slot)*slotSize+slotFailures); err != nil {
		return 0, fmt.Errorf("connectfail: read slot %d: %w", slot, err)
	}
	return binary.NativeEndian.Uint64(buffer), nil
}

// decodeAddress decodes an address of a slot.
func decodeAddress(b []byte) netip.Addr {
	return netip.AddrFrom16([addressSize]byte(b)).Unmap()
}

// Close stops counting.
func (p *Probe) Close() error {
	var err error
	if p.event >= 0 {
		err = unix.Close(p.event)
		p.event = -1
	}
	// Close of a nil map or program does nothing.
	return errors.Join(err, p.program.Close(), p.index.Close(), p.slots.Close(), p.free.Close())
}
