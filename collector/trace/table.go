//go:build linux

package trace

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// IdleTime is how long a pool has no event until its slot is freed.
	IdleTime = time.Minute

	// graceTime is how long a slot that is not in the index any more is kept. A run of a
	// program that found it there ends within microseconds. That on a tracepoint is not preempted. Those on
	// functions can be, where the kernel preempts itself.
	graceTime = 10 * time.Second

	// minTenants is for how many tenants there is room in any case, see limits.
	minTenants = 8

	// ancestorPart is 1 / the part of a tenant's share that one ancestor of it may have.
	ancestorPart = 4

	// closesPart is 1 / the part of a share of closes that gets free if it is used up.
	closesPart = 8
)

// A Call is what is counted: a call that found no port, or that closed a connection first.
type Call uint32

// The calls. That of a bind is the protocol of the socket.
const (
	Connect Call = 1
	Close   Call = 2
	BindTCP Call = unix.IPPROTO_TCP
	BindUDP Call = unix.IPPROTO_UDP
)

// A Process is one that did something. It is the zero value if a thread of the kernel did it, or a process of another control group.
type Process struct {
	Command string // of its main thread, see proc_pid_comm(5): at most 15 bytes, which the process chooses
	PID     int    // in the initial PID namespace
}

// A Count is a number of calls in one pool of ports: of connect() or bind() that failed, or of closes.
type Count struct {
	Call        Call
	Source      netip.Addr     // without a zone; unspecified if the socket is bound to no address
	Destination netip.AddrPort // without a zone; the zero value of a bind

	// Namespace is the cookie of the network namespace (SO_NETNS_COOKIE), or 0 if it is not
	// known.
	Namespace uint64

	// Cgroup is the control group of the caller: the inode of the directory in the cgroup2 file
	// system. Of a close, or if a thread of the kernel is the caller, it is that of the process that made the socket. Before
	// Linux 5.15 it is the caller's, which is the root for a thread of the kernel.
	Cgroup uint64

	// Ancestor is the control group two levels below the root that Cgroup is in, or Cgroup itself
	// if it is not deeper; 0 for the root. It is Cgroup if ancestors are not known. All pools of one
	// ancestor have a share of the table.
	Ancestor uint64

	// Tenant is a number for who made the network namespace: for a namespace that root made,
	// that namespace; for all others, the user or the user namespace. If namespaces are not
	// known, it is that of the ancestor.
	Tenant uint64

	Events uint64 // since the last call, at least 1

	// Last is the process of the last event, or of one shortly before. If two are counted at the same moment, the command
	// can be that of one and the PID that of the other.
	Last Process
}

// A Rest is what is counted without a slot.
type Rest struct{ Connects, Binds, Closes uint64 }

// A Table counts events in pools: failures or closes.
type Table struct {
	ofCloses        bool
	slots, shares   *ebpf.Memory
	unlink, release *ebpf.Program // never attached to anything
	state           []slotState
	rest            Rest // as of the last read
}

// A slotState is what user space knows of a slot. The program takes a slot that is free, without
// telling.
type slotState struct {
	phase    phase
	events   uint64    // as of the last read
	recent   uint64    // how much they rose then
	risen    time.Time // when they last rose, as of the last read
	unlinked time.Time
	tenant   uint64
	ancestor uint64
}

// A phase of a slot ends in the order of these constants, and then the first begins again.
type phase int

const (
	free     phase = iota // or the program has taken it since the last read
	used                  // it has a pool, and had events of it
	unlinked              // its pool is not in the index, but the program may still count here
)

// newTable returns a Table in which all slots are free.
func newTable(ofCloses bool, slots, shares *ebpf.Map, unlink, release *ebpf.Program) (*Table, error) {
	t := &Table{ofCloses: ofCloses, state: make([]slotState, slots.MaxEntries()-slotsOfRest), unlink: unlink, release: release}
	var err error
	if t.slots, err = slots.Memory(); err == nil {
		t.shares, err = shares.Memory()
	}
	if err != nil {
		return nil, explain("share a BPF map", err)
	}
	return t, t.setLimits(0)
}

// Counts returns the events since the last call, or since Attach: those of each pool that had
// some, in no order, and those of all pools without a slot.
func (t *Table) Counts(now time.Time) (counts []Count, rest Rest, err error) {
	var slot [slotSize]byte
	for i := range t.state {
		s := &t.state[i]
		// Read the events first: the program stores the pool of a slot before it counts.
		n, err := t.events(i, slot[slotEvents:])
		if err != nil {
			return counts, Rest{}, err
		}
		if n == s.events {
			s.recent = 0
			continue
		}
		if err := t.readPool(i, &slot); err != nil {
			return counts, Rest{}, err
		}
		count := decodeSlot(slot[:])
		if count.Call == 0 {
			continue // on a CPU that stores out of order, the pool may be late: the next call counts it
		}
		count.Events = n - s.events
		counts = append(counts, count)
		s.events, s.recent, s.risen, s.tenant, s.ancestor = n, count.Events, now, count.Tenant, count.Ancestor
		if s.phase == free {
			s.phase = used
		}
	}
	first, err := t.events(len(t.state), slot[slotEvents:])
	if err != nil {
		return counts, Rest{}, err
	}
	second, err := t.events(len(t.state)+1, slot[slotEvents:])
	if err != nil {
		return counts, Rest{}, err
	}
	all := Rest{Connects: first, Binds: second}
	if t.ofCloses {
		all = Rest{Closes: first}
	}
	rest = Rest{all.Connects - t.rest.Connects, all.Binds - t.rest.Binds, all.Closes - t.rest.Closes}
	t.rest = all
	return counts, rest, nil
}

// readPool reads all but the events of a slot. It reads the Process again if the program has just stored another one, so
// that a command is rarely made of two.
func (t *Table) readPool(i int, slot *[slotSize]byte) error {
	var again [slotEvents - slotCommand]byte
	if err := t.readAt(slot[:slotEvents], i, 0); err != nil {
		return err
	}
	for range 3 {
		if err := t.readAt(again[:], i, slotCommand); err != nil {
			return err
		}
		if bytes.Equal(again[:], slot[slotCommand:slotEvents]) {
			break
		}
		copy(slot[slotCommand:], again[:])
	}
	return nil
}

// decodeSlot returns the pool of a slot.
func decodeSlot(b []byte) Count {
	c := Count{
		Call:      Call(binary.NativeEndian.Uint32(b[slotCall:])),
		Source:    decodeAddress(b[slotSource:]),
		Namespace: binary.NativeEndian.Uint64(b[slotNamespace:]),
		Cgroup:    binary.NativeEndian.Uint64(b[slotCgroup:]),
		Ancestor:  binary.NativeEndian.Uint64(b[slotAncestor:]),
		Tenant:    binary.NativeEndian.Uint64(b[slotTenant:]),
		Last:      decodeProcess(b),
	}
	if c.Call == Connect || c.Call == Close {
		c.Destination = netip.AddrPortFrom(decodeAddress(b[slotDest:]), uint16(binary.NativeEndian.Uint32(b[slotPort:])))
	}
	return c
}

// decodeProcess returns the Process of a slot.
func decodeProcess(b []byte) Process {
	command, _, _ := bytes.Cut(b[slotCommand:slotCommand+commandSize], []byte{0})
	return Process{string(command), int(binary.NativeEndian.Uint32(b[slotProcess:]))}
}

// decodeAddress decodes an address of a slot.
func decodeAddress(b []byte) netip.Addr {
	return netip.AddrFrom16([addressSize]byte(b)).Unmap()
}

// Reclaim frees the slots of pools without an event for IdleTime, or whose tenants have
// more than their share. It is to be called after Counts. No event is lost or counted twice.
func (t *Table) Reclaim(now time.Time) error {
	for i := range t.state {
		if s := &t.state[i]; s.phase == unlinked && now.Sub(s.unlinked) >= graceTime {
			if err := t.releaseSlot(i); err != nil {
				return err
			}
		}
	}

	var inUse []int
	tenants := map[uint64]int{}
	for i := range t.state {
		if s := &t.state[i]; s.phase == used {
			inUse = append(inUse, i)
			tenants[s.tenant] = 0
		}
	}
	if err := t.setLimits(len(tenants)); err != nil {
		return err
	}
	ofTenant, ofAncestor := t.limits(len(tenants))
	if t.ofCloses { // a part of a share that is used up gets free for pools that have more closes than those of the slots
		ofTenant, ofAncestor = ofTenant-ofTenant/closesPart, ofAncestor-ofAncestor/closesPart
	}
	// Of a tenant with too many slots, those that had an event last stay, and of these, those that had most.
	slices.SortStableFunc(inUse, func(a, b int) int {
		return cmp.Or(t.state[b].risen.Compare(t.state[a].risen), cmp.Compare(t.state[b].recent, t.state[a].recent))
	})
	ancestors := map[[2]uint64]int{}
	for _, i := range inUse {
		s := &t.state[i]
		ancestor := [2]uint64{s.tenant, s.ancestor}
		if tenants[s.tenant] < ofTenant && ancestors[ancestor] < ofAncestor && now.Sub(s.risen) < IdleTime {
			tenants[s.tenant]++
			ancestors[ancestor]++
			continue
		}
		if err := t.runOnce(t.unlink, i); err != nil {
			return err
		}
		s.phase, s.unlinked = unlinked, now
	}
	return nil
}

// releaseSlot gives a slot that is unlinked to the program again.
func (t *Table) releaseSlot(i int) error {
	var shareOf [slotCommand - slotTenantShare]byte
	if err := t.readAt(shareOf[:], i, slotTenantShare); err != nil {
		return err
	}
	// Until the program has stored a pool, read takes the slot for one whose pool is late.
	var none [slotNamespace - slotCall]byte
	if _, err := t.slots.WriteAt(none[:], int64(i)*slotSize+slotCall); err != nil {
		return fmt.Errorf("trace: clear slot %d: %w", i, err)
	}
	if err := t.runOnce(t.release, i); err != nil {
		return err
	}
	t.state[i].phase = free
	for at := 0; at < len(shareOf); at += 4 {
		if err := t.returnTo(binary.NativeEndian.Uint32(shareOf[at:])); err != nil {
			return err
		}
	}
	return nil
}

// returnTo gives a slot back to a share.
func (t *Table) returnTo(share uint32) error {
	var returned [4]byte
	at := int64(share)*shareSize + shareReturned
	_, err := t.shares.ReadAt(returned[:], at)
	if err == nil {
		binary.NativeEndian.PutUint32(returned[:], binary.NativeEndian.Uint32(returned[:])+1)
		_, err = t.shares.WriteAt(returned[:], at)
	}
	if err != nil {
		return fmt.Errorf("trace: return a slot to share %d: %w", share, err)
	}
	return nil
}

// limits returns how many slots a tenant may have, and how many an ancestor of it, if that many
// tenants have some. With these limits, they have at most half of the table, and the rest is for
// others. A tenant that is alone gets no more, so that others find room even if they come before the
// next call of Reclaim.
func (t *Table) limits(tenants int) (ofTenant, ofAncestor int) {
	ofTenant = max(1, len(t.state)/(2*max(tenants, minTenants)))
	return ofTenant, max(1, ofTenant/ancestorPart)
}

// setLimits tells the limits to the program.
func (t *Table) setLimits(tenants int) error {
	var share [shareSize]byte
	ofTenant, ofAncestor := t.limits(tenants)
	binary.NativeEndian.PutUint32(share[limitTenant:], uint32(ofTenant))
	binary.NativeEndian.PutUint32(share[limitAncestor:], uint32(ofAncestor))
	if _, err := t.shares.WriteAt(share[:], limitsAt*shareSize); err != nil {
		return fmt.Errorf("trace: set limits: %w", err)
	}
	return nil
}

// Utilization is the part of the slots that is not free, as of the last call of Counts or Reclaim.
func (t *Table) Utilization() float64 {
	n := 0
	for _, s := range t.state {
		if s.phase != free {
			n++
		}
	}
	return float64(n) / float64(len(t.state))
}

// events returns the events of a slot. It reads all 8 bytes at once into buffer.
func (t *Table) events(slot int, buffer []byte) (uint64, error) {
	if err := t.readAt(buffer, slot, slotEvents); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(buffer), nil
}

// readAt reads a part of a slot.
func (t *Table) readAt(buffer []byte, slot int, offset int64) error {
	if _, err := t.slots.ReadAt(buffer, int64(slot)*slotSize+offset); err != nil {
		return fmt.Errorf("trace: read slot %d: %w", slot, err)
	}
	return nil
}

// runOnce runs a program with the number of a slot as its argument.
func (t *Table) runOnce(program *ebpf.Program, slot int) error {
	arguments := binary.NativeEndian.AppendUint64(nil, uint64(slot))
	closes := uint64(0)
	if t.ofCloses {
		closes = 1
	}
	arguments = binary.NativeEndian.AppendUint64(arguments, closes)
	if _, err := program.Run(&ebpf.RunOptions{Context: arguments}); err != nil {
		return explain("run a BPF program", err)
	}
	return nil
}
