//go:build linux

package bpf

import "golang.org/x/sys/unix"

// MemlockCure says how to raise the limit of locked memory for a process that may not raise it itself.
const MemlockCure = "in systemd LimitMEMLOCK=8M, in a shell ulimit -l 8192, in Docker --ulimit memlock=8388608, or CAP_SYS_RESOURCE"

// RaiseMemlock raises the limit of locked memory, RLIMIT_MEMLOCK, as far as the process may: with CAP_SYS_RESOURCE there
// is none then, without it the hard limit holds. Before Linux 5.11, the kernel counts the BPF maps and programs of all
// processes of a user as locked memory.
func RaiseMemlock() {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	const self = 0 // prlimit64(2) is the only call for limits that the units allow
	if unix.Prlimit(self, unix.RLIMIT_MEMLOCK, &limit, nil) == nil || unix.Prlimit(self, unix.RLIMIT_MEMLOCK, nil, &limit) != nil {
		return
	}
	limit.Cur = limit.Max
	_ = unix.Prlimit(self, unix.RLIMIT_MEMLOCK, &limit, nil) // the kernel refuses the maps if that is not enough
}
