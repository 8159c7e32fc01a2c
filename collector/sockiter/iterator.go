//go:build linux

package sockiter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/memlock"
	"ephemeral_port_exporter/collector/sockdiag"
)

// bpfName is the name of the program and its map in bpftool(8).
const bpfName = "tcp_sockets"

// bufferSize is the length in bytes of the buffer for records: the most whole ones that fit into 32 KiB.
// The kernel writes records to a buffer of its own until that is full, or the reader's is, and copies what
// fits (bpf_seq_read). Its own has 8 pages. With pages of more than 4 KiB it would cut a record at the end of a buffer
// of another size, and return the rest to the next read.
const bufferSize = 32 << 10 / recordSize * recordSize

// An Iterator lists TCP sockets. It serves one request at a time.
type Iterator struct {
	ports   *ebpf.Map // array with one port range, see rangeSize
	memory  *ebpf.Memory
	program *ebpf.Program
	link    *link.Iter

	open   func() (io.ReadCloser, error)
	buffer []byte
	tick   time.Duration
}

// Attach loads the iterator into the kernel. It needs CAP_BPF and CAP_PERFMON, Linux 5.9 on a
// 64-bit machine, and BTF. The error names what is missing. It is fs.ErrPermission, fs.ErrNotExist
// if there is no BTF, or ErrUnsupported. tick is the time between two ticks of the kernel's timers,
// 1 / CONFIG_HZ.
func Attach(tick time.Duration) (*Iterator, error) {
	if err := missingCapabilities(); err != nil {
		return nil, err
	}
	l, err := readLayout()
	if err != nil {
		return nil, fmt.Errorf("sockiter: %w", err)
	}
	memlock.Raise()
	it := &Iterator{buffer: make([]byte, bufferSize), tick: tick}
	if err := it.attach(l); err != nil {
		it.Close()
		return nil, err
	}
	it.open = it.link.Open
	return it, nil
}

// attach makes the map and the program.
func (it *Iterator) attach(l layout) (err error) {
	it.ports, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: bpfName, Type: ebpf.Array, KeySize: 4, ValueSize: rangeSize, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return explain("make a BPF map", err)
	}
	if it.memory, err = it.ports.Memory(); err != nil {
		return explain("share a BPF map", err)
	}
	it.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: bpfName, Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "tcp",
		License:      "GPL", // bpf_seq_write is only for programs under it
		Instructions: instructions(l, it.ports.FD()),
	})
	if err != nil {
		return explain("load a BPF program", err)
	}
	it.link, err = link.AttachIter(link.IterOptions{Program: it.program})
	if err != nil {
		return explain("attach a BPF iterator", err)
	}
	return nil
}

// Sockets calls each for every TCP socket of the network namespace of the calling thread whose
// local port lies from low to high, both included: first for all listeners, then for the others.
// The Socket is valid until the call returns.
//
// Before an error, each may have been called for some sockets: these are incomplete and must
// not be used. The error is os.ErrDeadlineExceeded at the deadline, which is checked before each
// 32 KiB of records: the kernel cannot be stopped meanwhile. The list is not atomic: a socket that
// opens, closes or changes its state meanwhile can be missing or appear twice.
func (it *Iterator) Sockets(low, high uint16, deadline time.Time, each func(*Socket)) error {
	if err := it.sockets(low, high, deadline, each); err != nil {
		return fmt.Errorf("sockiter: list tcp sockets: %w", err)
	}
	return nil
}

func (it *Iterator) sockets(low, high uint16, deadline time.Time, each func(*Socket)) error {
	var ports [rangeSize]byte
	binary.NativeEndian.PutUint16(ports[rangeLow:], low)
	binary.NativeEndian.PutUint16(ports[rangeHigh:], high)
	if _, err := it.memory.WriteAt(ports[:], 0); err != nil {
		return err
	}
	// An open iterator belongs to the namespace of the thread that opened it.
	records, err := it.open()
	if err != nil {
		return fmt.Errorf("open the iterator, which needs CAP_BPF before Linux 5.19: %w", err)
	}
	defer records.Close()
	cut := 0 // how many bytes of a record the last read has left at the start of the buffer
	for {
		if !time.Now().Before(deadline) {
			return os.ErrDeadlineExceeded
		}
		n, err := records.Read(it.buffer[cut:])
		switch {
		case errors.Is(err, io.EOF) && cut > 0:
			return fmt.Errorf("%w: the last one has %d bytes instead of %d", ErrMalformed, cut, recordSize)
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue // EAGAIN: none of a million sockets (MAX_ITER_OBJECTS) was in the range
		case err != nil:
			return err
		}
		seen, err := sockdiag.Now()
		if err != nil {
			return err
		}
		rest := it.parse(it.buffer[:cut+n], seen, each)
		cut = copy(it.buffer, rest)
	}
}

// parse calls each for the records in b, which the kernel had written at a time. It returns the bytes behind the
// last whole one.
func (it *Iterator) parse(b []byte, seen time.Duration, each func(*Socket)) (rest []byte) {
	s := Socket{Socket: sockdiag.Socket{Seen: seen}}
	for ; len(b) >= recordSize; b = b[recordSize:] {
		flags := b[recordFlags]
		s.State = sockdiag.State(b[recordState])
		s.Local = netip.AddrPortFrom(parseAddress(b[recordLocal:]), binary.NativeEndian.Uint16(b[recordPort:]))
		s.Remote = netip.AddrPortFrom(parseAddress(b[recordRemote:]), binary.BigEndian.Uint16(b[recordRemotePort:]))
		s.Interface = binary.NativeEndian.Uint32(b[recordInterface:])
		s.Mini = flags&flagMini != 0
		s.Expires = time.Duration(binary.NativeEndian.Uint32(b[recordExpires:])) * it.tick
		s.V6Only = s.State == sockdiag.Listen && flags&flagV6Only != 0
		s.Cgroup = 0
		if s.State != sockdiag.Listen {
			s.Cgroup = binary.NativeEndian.Uint64(b[recordCgroup:])
		}
		s.Bound = flags&flagBound != 0
		s.Timestamps = s.State == sockdiag.TimeWait && flags&flagTimestamps != 0
		s.Stamp = binary.NativeEndian.Uint32(b[recordStamp:])
		each(&s)
	}
	return b
}

// parseAddress parses an address of a record.
func parseAddress(b []byte) netip.Addr {
	return netip.AddrFrom16([addressSize]byte(b)).Unmap()
}

// Close removes the iterator from the kernel.
func (it *Iterator) Close() error {
	var err error
	if it.link != nil {
		err = it.link.Close()
	}
	// Close of a nil map or program does nothing.
	return errors.Join(err, it.program.Close(), it.ports.Close())
}
