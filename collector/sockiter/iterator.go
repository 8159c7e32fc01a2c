//go:build linux

package sockiter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/bpf"
	"ephemeral_port_exporter/collector/sockdiag"
)

// bufferSize is the length in bytes of the buffer for records: the most whole ones that fit into 32 KiB.
// The kernel writes records to a buffer of its own until that is full, or the reader's is, and copies what
// fits (bpf_seq_read). Its own has 8 pages. With pages of more than 4 KiB it would cut a record at the end of a buffer
// of another size, and return the rest to the next read.
const bufferSize = 32 << 10 / recordSize * recordSize

// An Iterator lists TCP sockets. It serves one request at a time.
type Iterator struct {
	objects bpfObjects
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
	if err := bpf.CheckBTF(); err != nil {
		return nil, fmt.Errorf("sockiter: %w", err)
	}
	bpf.RaiseMemlock()
	it := &Iterator{buffer: make([]byte, bufferSize), tick: tick}
	if err := loadBpfObjects(&it.objects, nil); err != nil {
		return nil, explain("load the BPF program", err)
	}
	var err error
	if it.link, err = link.AttachIter(link.IterOptions{Program: it.objects.TcpSockets}); err != nil {
		it.Close()
		return nil, explain("attach the BPF iterator", err)
	}
	it.open = it.link.Open
	return it, nil
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
	if err := errors.Join(it.objects.Low.Set(low), it.objects.High.Set(high)); err != nil {
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

// Close removes the iterator from the kernel.
func (it *Iterator) Close() error {
	var err error
	if it.link != nil {
		err = it.link.Close()
	}
	return errors.Join(err, it.objects.Close())
}
