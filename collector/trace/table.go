//go:build linux

package trace

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// IdleTime is how long no call of a pool fails until its slot is freed.
	IdleTime = time.Minute

	// graceTime is how long a slot that is not in the index any more is kept. A run of a
	// program that found it there ends within microseconds. That on a tracepoint is not preempted. Those on
	// functions can be, where the kernel preempts itself.
	graceTime = 10 * time.Second

	// minTenants is for how many tenants there is room in any case, see limits.
	minTenants = 8

	// ancestorPart is 1 / the part of a tenant's share that one ancestor of it may have.
	ancestorPart = 4
)

// A Call is what found no port.
type Call uint32

// The calls. That of a bind is the protocol of the socket.
const (
	Connect Call = 1
	BindTCP Call = unix.IPPROTO_TCP
	BindUDP Call = unix.IPPROTO_UDP
)

// A Count is a number of calls that failed in one pool of ports.
type Count struct {
	Call        Call
	Source      netip.Addr     // without a zone; unspecified if the socket is bound to no address
	Destination netip.AddrPort // without a zone; the zero value of a bind

	// Namespace is the cookie of the network namespace (SO_NETNS_COOKIE), or 0 if it is not
	// known.
	Namespace uint64

	// Cgroup is the control group of the caller: the inode of the directory in the cgroup2 file
	// system.
	Cgroup uint64

	// Ancestor is the control group two levels below the root that Cgroup is in, or Cgroup itself
	// if it is not deeper; 0 for the root. It is Cgroup if ancestors are not known. All pools of one
	// ancestor have a share of the table.
	Ancestor uint64

	// Tenant is a number for who made the network namespace: for a namespace that root made,
	// that namespace; for all others, the user or the user namespace. If namespaces are not
	// known, it is that of the ancestor.
	Tenant uint64

	Failures uint64 // since the last call, at least 1
}

// A Rest is what is counted without a slot.
type Rest struct{ Connects, Binds uint64 }

// A table is what user space knows of the slots, and does with them.
type table struct {
	slots, shares   *ebpf.Memory
	unlink, release *ebpf.Program // never attached to anything
	state           []slotState
	rest            Rest // as of the last read
}

// A slotState is what user space knows of a slot. The program takes a slot that is free, without
// telling.
type slotState struct {
	phase    phase
	failures uint64    // as of the last read
	failed   time.Time // when they last rose, as of the last read
	unlinked time.Time
	tenant   uint64
	ancestor uint64
}

// A phase of a slot ends in the order of these constants, and then the first begins again.
type phase int

const (
	free     phase = iota // or the program has taken it since the last read
	used                  // it has a pool, and had failures of it
	unlinked              // its pool is not in the index, but the program may still count here
)

// newTable returns a table in which all slots are free.
func newTable(objects *objects) (*table, error) {
	t := &table{state: make([]slotState, objects.Slots.MaxEntries()-slotsOfRest), unlink: objects.Unlink, release: objects.Release}
	var err error
	if t.slots, err = objects.Slots.Memory(); err == nil {
		t.shares, err = objects.Shares.Memory()
	}
	if err != nil {
		return nil, explain("share a BPF map", err)
	}
	return t, t.setLimits(0)
}

// read is Probe.Counts.
func (t *table) read(now time.Time) (counts []Count, rest Rest, err error) {
	var slot [slotSize]byte
	for i := range t.state {
		s := &t.state[i]
		// Read the failures first: the program stores the pool of a slot before it counts.
		n, err := t.failures(i, slot[slotFailures:])
		if err != nil {
			return counts, Rest{}, err
		}
		if n == s.failures {
			continue
		}
		if err := t.readAt(slot[:slotFailures], i, 0); err != nil {
			return counts, Rest{}, err
		}
		count := decodeSlot(slot[:])
		if count.Call == 0 {
			continue // on a CPU that stores out of order, the pool may be late: the next call counts it
		}
		count.Failures = n - s.failures
		counts = append(counts, count)
		s.failures, s.failed, s.tenant, s.ancestor = n, now, count.Tenant, count.Ancestor
		if s.phase == free {
			s.phase = used
		}
	}
	var all Rest
	if all.Connects, err = t.failures(len(t.state), slot[slotFailures:]); err == nil {
		all.Binds, err = t.failures(len(t.state)+1, slot[slotFailures:])
	}
	if err != nil {
		return counts, Rest{}, err
	}
	rest = Rest{all.Connects - t.rest.Connects, all.Binds - t.rest.Binds}
	t.rest = all
	return counts, rest, nil
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
	}
	if c.Call == Connect {
		c.Destination = netip.AddrPortFrom(decodeAddress(b[slotDest:]), uint16(binary.NativeEndian.Uint32(b[slotPort:])))
	}
	return c
}

// decodeAddress decodes an address of a slot.
func decodeAddress(b []byte) netip.Addr {
	return netip.AddrFrom16([addressSize]byte(b)).Unmap()
}

// reclaim is Probe.Reclaim. It moves slots to their next phase.
func (t *table) reclaim(now time.Time) error {
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
	// Of a tenant with too many slots, those that failed last stay.
	slices.SortStableFunc(inUse, func(a, b int) int { return t.state[b].failed.Compare(t.state[a].failed) })
	ancestors := map[[2]uint64]int{}
	for _, i := range inUse {
		s := &t.state[i]
		ancestor := [2]uint64{s.tenant, s.ancestor}
		if tenants[s.tenant] < ofTenant && ancestors[ancestor] < ofAncestor && now.Sub(s.failed) < IdleTime {
			tenants[s.tenant]++
			ancestors[ancestor]++
			continue
		}
		if err := runOnce(t.unlink, i); err != nil {
			return err
		}
		s.phase, s.unlinked = unlinked, now
	}
	return nil
}

// releaseSlot gives a slot that is unlinked to the program again.
func (t *table) releaseSlot(i int) error {
	var shareOf [slotFailures - slotTenantShare]byte
	if err := t.readAt(shareOf[:], i, slotTenantShare); err != nil {
		return err
	}
	// Until the program has stored a pool, read takes the slot for one whose pool is late.
	var none [slotNamespace - slotCall]byte
	if _, err := t.slots.WriteAt(none[:], int64(i)*slotSize+slotCall); err != nil {
		return fmt.Errorf("trace: clear slot %d: %w", i, err)
	}
	if err := runOnce(t.release, i); err != nil {
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
func (t *table) returnTo(share uint32) error {
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
func (t *table) limits(tenants int) (ofTenant, ofAncestor int) {
	ofTenant = max(1, len(t.state)/(2*max(tenants, minTenants)))
	return ofTenant, max(1, ofTenant/ancestorPart)
}

// setLimits tells the limits to the program.
func (t *table) setLimits(tenants int) error {
	var share [shareSize]byte
	ofTenant, ofAncestor := t.limits(tenants)
	binary.NativeEndian.PutUint32(share[limitTenant:], uint32(ofTenant))
	binary.NativeEndian.PutUint32(share[limitAncestor:], uint32(ofAncestor))
	if _, err := t.shares.WriteAt(share[:], limitsAt*shareSize); err != nil {
		return fmt.Errorf("trace: set limits: %w", err)
	}
	return nil
}

// utilization is Probe.Utilization.
func (t *table) utilization() float64 {
	n := 0
	for _, s := range t.state {
		if s.phase != free {
			n++
		}
	}
	return float64(n) / float64(len(t.state))
}

// failures returns the failures of a slot. It reads all 8 bytes at once into buffer.
func (t *table) failures(slot int, buffer []byte) (uint64, error) {
	if err := t.readAt(buffer, slot, slotFailures); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(buffer), nil
}

// readAt reads a part of a slot.
func (t *table) readAt(buffer []byte, slot int, offset int64) error {
	if _, err := t.slots.ReadAt(buffer, int64(slot)*slotSize+offset); err != nil {
		return fmt.Errorf("trace: read slot %d: %w", slot, err)
	}
	return nil
}

// runOnce runs a program with the number of a slot as its argument.
func runOnce(program *ebpf.Program, slot int) error {
	argument := binary.NativeEndian.AppendUint64(nil, uint64(slot))
	if _, err := program.Run(&ebpf.RunOptions{Context: argument}); err != nil {
		return explain("run a BPF program", err)
	}
	return nil
}
