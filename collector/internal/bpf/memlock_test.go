//go:build linux

package bpf

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRaiseMemlock raises a limit with and without the capability to raise the hard limit.
func TestRaiseMemlock(t *testing.T) {
	const soft, hard = 64 << 10, 1 << 20
	limitOf := func() (l unix.Rlimit) {
		t.Helper()
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	old := limitOf()
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: soft, Max: min(hard, old.Max)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old) })

	without := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its capabilities with it
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		RaiseMemlock()
		without <- err
	}()
	if err := <-without; err != nil {
		t.Fatal(err)
	}
	if got, want := limitOf(), (unix.Rlimit{Cur: min(hard, old.Max), Max: min(hard, old.Max)}); got != want {
		t.Errorf("without capabilities: got %+v, want %+v", got, want)
	}

	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		return // this user may not
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: soft, Max: hard}); err != nil {
		t.Fatal(err)
	}
	RaiseMemlock()
	if got, want := limitOf(), (unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); got != want {
		t.Errorf("with all capabilities: got %+v, want %+v", got, want)
	}
}
