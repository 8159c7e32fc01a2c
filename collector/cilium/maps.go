//go:build linux

package cilium

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Errors for errors.Is. Besides these, an expired deadline is os.ErrDeadlineExceeded, and a refusal is fs.ErrPermission.
var (
	// ErrNoFileSystem means that there is no BPF file system at the path, so that nothing is known of the maps.
	ErrNoFileSystem = errors.New("no BPF file system")

	// ErrUnknown means that a map is not as in the versions of Cilium that are known.
	ErrUnknown = errors.New("unknown layout")
)

// globals is where Cilium pins its maps in the BPF file system.
const globals = "tc/globals"

// Maps are the open maps of the source NAT of a host.
type Maps struct {
	nat     []natMap // of IPv4, of IPv6, or both
	retries []*ebpf.Map
}

// A natMap is the NAT map of one version of IP, with the maps of connection tracking.
type natMap struct {
	family
	entries  *ebpf.Map
	tcp, any *ebpf.Map
}

// Open opens the maps that are pinned below the mount point of a BPF file system. The caller closes them. There is nothing to read
// if that has maps of Cilium, but none for source NAT: then Maps are empty. The error is fs.ErrNotExist if it has no maps of Cilium,
// or if they are not below a directory of root.
//
// It needs the right to read files of root. Before Linux 5.19, or what a distribution has of it, it needs CAP_BPF too unless the sysctl
// kernel.unprivileged_bpf_disabled is 0.
func Open(mount string) (*Maps, error) {
	m, err := open(mount)
	if err != nil {
		return nil, fmt.Errorf("cilium: %w", err)
	}
	return m, nil
}

// CheckFileSystem returns an error if no BPF file system is mounted at a path: that of Open.
func CheckFileSystem(mount string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: mount, Err: err}
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w is mounted at %s", ErrNoFileSystem, mount)
	}
	return nil
}

// checkOwner returns an error if the directory of the pinned maps is not there, or is not root's: unless its mount says otherwise, anyone may make
// directories and symbolic links in a BPF file system.
func checkOwner(mount string) error {
	for _, dir := range []string{filepath.Dir(globals), globals} {
		path := filepath.Join(mount, dir)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Uid != 0 {
			return fmt.Errorf("%s belongs to user %d, and not to root as Cilium's: %w", path, st.Uid, fs.ErrNotExist)
		}
	}
	return nil
}

func open(mount string) (*Maps, error) {
	if err := CheckFileSystem(mount); err != nil {
		return nil, err
	}
	if err := checkOwner(mount); err != nil {
		return nil, err
	}
	dir, m := filepath.Join(mount, globals), &Maps{}
	for _, version := range []struct {
		family
		number string
	}{{ipv4, "4"}, {ipv6, "6"}} {
		if err := m.add(dir, version.family, version.number); err != nil {
			m.Close()
			return nil, err
		}
	}
	if m.Empty() {
		if _, err := os.Stat(filepath.Join(dir, "cilium_lxc")); err != nil { // each version has this map
			return nil, err
		}
	}
	return m, nil
}

// add opens the maps of one version of IP, if there are any.
func (m *Maps) add(dir string, f family, version string) error {
	entries, err := openMap(filepath.Join(dir, "cilium_snat_v"+version+"_external"), f.tuple, f.entry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	n := natMap{family: f, entries: entries}
	m.nat = append(m.nat, n)
	of := &m.nat[len(m.nat)-1]
	if of.tcp, err = openMap(filepath.Join(dir, "cilium_ct"+version+"_global"), f.tuple, trackSize); err != nil {
		return err
	}
	if of.any, err = openMap(filepath.Join(dir, "cilium_ct_any"+version+"_global"), f.tuple, trackSize); err != nil {
		return err
	}
	retries, err := openMap(filepath.Join(dir, "cilium_snat_v"+version+"_alloc_retries"), 4, 4)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // before Cilium 1.18
	} else if err != nil {
		return err
	}
	m.retries = append(m.retries, retries)
	return nil
}

// openMap opens a pinned map to read it. It calls bpf(2) only if there is one: a filter of system calls may forbid that.
func openMap(path string, key, value int) (*ebpf.Map, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if int(m.KeySize()) != key || int(m.ValueSize()) != value {
		defer m.Close()
		return nil, fmt.Errorf("%w: %s has keys of %d and values of %d bytes, and not of %d and %d", ErrUnknown, path, m.KeySize(), m.ValueSize(), key, value)
	}
	return m, nil
}

// Close closes the maps.
func (m *Maps) Close() {
	for _, n := range m.nat {
		for _, of := range []*ebpf.Map{n.entries, n.tcp, n.any} {
			of.Close() // a nil Map too
		}
	}
	for _, r := range m.retries {
		r.Close()
	}
}

// Empty reports whether Cilium does no source NAT here.
func (m *Maps) Empty() bool { return len(m.nat) == 0 }

// Tries returns how many ports the datapath tries for one connection. known is false before Cilium 1.18, where no map tells.
func (m *Maps) Tries() (n int, known bool) {
	if len(m.retries) == 0 {
		return 0, false
	}
	return int(m.retries[0].MaxEntries()) - 1, true
}

// Failures returns how many connections got no port, as the datapath counts. It is less than before if somebody has cleared the counters, or if they
// have begun anew behind 4294967295. It is 0 where Tries are not known.
func (m *Maps) Failures() (n uint64, err error) {
	for _, r := range m.retries {
		var perCPU []uint32
		if err := r.Lookup(r.MaxEntries()-1, &perCPU); err != nil {
			return 0, fmt.Errorf("cilium: read %s: %w", r, err)
		}
		for _, c := range perCPU {
			n += uint64(c)
		}
	}
	return n, nil
}

// batch is how many entries are read at once. A bucket of the kernel's hash table with more is an error, and is not to be expected: the
// table has as many buckets as it may have entries.
const batch = 4096

// Flows calls each for every flow that holds a port. The Flow is valid until the call returns.
//
// Before an error, each may have been called for some flows: these are incomplete and must not be used. The list is not atomic: a flow
// that begins or ends meanwhile can be missing. The kernel reads one bucket of its hash table after the other, so no flow is listed twice, and none is
// missing that is there all the time.
func (m *Maps) Flows(deadline time.Time, each func(*Flow)) error {
	for i := range m.nat {
		n := &m.nat[i]
		list := n.list4
		if n.address == ipv6.address {
			list = n.list6
		}
		if err := list(deadline, each); err != nil {
			return fmt.Errorf("cilium: list the flows of %s: %w", n.entries, err)
		}
	}
	return nil
}

func (n *natMap) list4(deadline time.Time, each func(*Flow)) error {
	return list[tuple4, entry4](n, deadline, each)
}

func (n *natMap) list6(deadline time.Time, each func(*Flow)) error {
	return list[tuple6, entry6](n, deadline, each)
}

// Tuples and entries. Arrays, so that the kernel writes to a slice of them directly.
type (
	tuple4 [tuple4Size]byte
	tuple6 [tuple6Size]byte
	entry4 [entry4Size]byte
	entry6 [entry6Size]byte
)

func (t *tuple4) bytes() []byte { return t[:] }
func (t *tuple6) bytes() []byte { return t[:] }
func (e *entry4) bytes() []byte { return e[:] }
func (e *entry6) bytes() []byte { return e[:] }

// bytes is a pointer to an array of bytes.
type bytes[T any] interface {
	*T
	bytes() []byte
}

// list is Maps.Flows for one map.
func list[K, V any, PK bytes[K], PV bytes[V]](n *natMap, deadline time.Time, each func(*Flow)) error {
	var (
		keys, values = make([]K, batch), make([]V, batch)
		cursor       ebpf.MapBatchCursor
		flow         Flow
		key          K // these two are made once, as the calls have them escape
		track        [trackSize]byte
	)
	for {
		if !time.Now().Before(deadline) {
			return os.ErrDeadlineExceeded
		}
		count, err := n.entries.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range count {
			tuple, entry := PK(&keys[i]).bytes(), PV(&values[i]).bytes()
			if !n.parse(&flow, tuple, entry) {
				continue
			}
			n.connection(PK(&key).bytes(), tuple, entry)
			var stateErr error
			if flow.State, stateErr = n.state(flow.Protocol, &key, &track); stateErr != nil {
				return stateErr
			}
			each(&flow)
		}
		if err != nil {
			return nil // there are no more
		}
	}
}

// state returns the state of a flow, given the key of its connection, which is read into track.
func (n *natMap) state(p Protocol, key any, track *[trackSize]byte) (State, error) {
	connections := n.any
	if p == TCP {
		connections = n.tcp
	}
	err := connections.Lookup(key, track)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return NoConnection, nil
	} else if err != nil {
		return 0, err
	}
	return stateOf(p, track[:]), nil
}
