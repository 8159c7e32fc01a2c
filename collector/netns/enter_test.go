//go:build linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// firstThread is what Visit does that is called by the first thread of the process.
var firstThread struct {
	visited bool
	on      int // thread
	err     error
}

func TestMain(m *testing.M) {
	runtime.LockOSThread() // main starts on the first thread
	firstThread.err = visit("/proc", func(*Visitor) error {
		firstThread.visited, firstThread.on = true, unix.Gettid()
		return nil
	})
	runtime.UnlockOSThread()
	os.Exit(netnstest.Main(m))
}

// TestVisitFirstThread never takes the first thread of the process to another namespace.
func TestVisitFirstThread(t *testing.T) {
	if !firstThread.visited || firstThread.on == unix.Getpid() || firstThread.err != nil && !errors.Is(firstThread.err, unix.EPERM) {
		t.Errorf("got %+v", firstThread)
	}
}

// TestVisitNoReturn ends a thread that cannot return.
func TestVisitNoReturn(t *testing.T) {
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "ns"), nil)
	ns := mounted(t, dir)
	thread := 0
	err := Visit("/proc", func(v *Visitor) error {
		if _, err := v.Enter(ns); err != nil {
			return err
		}
		thread = unix.Gettid()
		// The only open namespace of this process is the way home.
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if link, err := os.Readlink(fd); err == nil && strings.HasPrefix(link, "net:[") {
				n, err := strconv.Atoi(filepath.Base(fd))
				if err != nil {
					return err
				}
				return unix.Close(n)
			}
		}
		return errors.New("no way home to close")
	})
	if !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), "return to own namespace") {
		t.Errorf("got %v, want %v", err, unix.EBADF)
	}
	task := filepath.Join("/proc/self/task", strconv.Itoa(thread))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(task); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %d is still there", thread)
		}
	}
}

// here returns the inode of the calling thread's namespace.
func here(t *testing.T) uint64 {
	t.Helper()
	inode, err := Self("/proc")
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

// enter calls fn in a namespace.
func enter(ns Namespace, fn func(cookie uint64) error) error {
	return Visit("/proc", func(v *Visitor) error {
		cookie, err := v.Enter(ns)
		if err != nil {
			return err
		}
		return fn(cookie)
	})
}

// mounted returns the only namespace of a directory.
func mounted(t *testing.T, dir string) Namespace {
	t.Helper()
	namespaces, err := Mounted(dir)
	if err != nil || len(namespaces) != 1 {
		t.Fatalf("got %v, %v, want one namespace", namespaces, err)
	}
	return namespaces[0]
}

// TestEnter checks that the thread is in the namespace during the call only, and that each
// namespace has a cookie of its own. Where there are none, all are 0.
func TestEnter(t *testing.T) {
	cookies, count := map[uint64]bool{}, 2
	if !netnstest.HasCookies(t) {
		count = 1
	}
	for _, dir := range []string{t.TempDir(), t.TempDir()} {
		netnstest.Mount(t, filepath.Join(dir, "ns"), nil)
		ns := mounted(t, dir)
		wanted := errors.New("the error of fn")
		for range 2 {
			var first uint64
			err := enter(ns, func(cookie uint64) error {
				if here(t) != ns.Inode || (cookie != 0) != netnstest.HasCookies(t) || first != 0 && cookie != first {
					t.Errorf("in %d with cookie %d, want %d", here(t), cookie, ns.Inode)
				}
				first = cookie
				cookies[cookie] = true
				return wanted
			})
			if !errors.Is(err, wanted) {
				t.Errorf("got %v, want %v", err, wanted)
			}
		}
		if here(t) == ns.Inode {
			t.Error("did not come back")
		}
	}
	if len(cookies) != count {
		t.Errorf("cookies %v, want %d", cookies, count)
	}
}

// TestEnterGone enters a namespace that was removed after it was listed, or whose path is
// something else by now.
func TestEnterGone(t *testing.T) {
	// It is there before the first is removed: it would get the inode of that.
	other := filepath.Join(t.TempDir(), "other")
	netnstest.Mount(t, other, nil)
	bind := func(t *testing.T, source, path string) {
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	}
	tests := []struct {
		name    string
		replace func(t *testing.T, path string)
	}{
		{"removed", func(*testing.T, string) {}},
		{"plain file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o444); err != nil {
				t.Fatal(err)
			}
		}},
		{"FIFO", func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"another namespace", func(t *testing.T, path string) { bind(t, other, path) }},
		{"another kind", func(t *testing.T, path string) { bind(t, "/proc/self/ns/uts", path) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "ns")
			netnstest.Mount(t, path, nil)
			ns := mounted(t, dir)
			netnstest.Unmount(t, path)
			tt.replace(t, path)
			err := enter(ns, func(uint64) error {
				t.Error("entered it")
				return nil
			})
			if !errors.Is(err, ErrGone) {
				t.Errorf("got %v, want %v", err, ErrGone)
			}
		})
	}
}

// TestEnterOtherKind checks that a namespace of another kind is refused.
func TestEnterOtherKind(t *testing.T) {
	path := "/proc/self/ns/uts"
	inode, _, ok, err := stat(path, 0)
	if !ok {
		t.Fatalf("no namespace to try: %v", err)
	}
	if err := enter(Namespace{Inode: inode, paths: []string{path}}, func(uint64) error { return nil }); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want %v", err, ErrGone)
	}
}

// TestEnterRemoved checks that the thread stays in a namespace that is removed meanwhile.
func TestEnterRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ns")
	netnstest.Mount(t, path, nil)
	ns := mounted(t, dir)
	err := enter(ns, func(uint64) error {
		netnstest.Unmount(t, path)
		if here(t) != ns.Inode {
			t.Error("thrown out")
		}
		_, err := os.ReadFile("/proc/thread-self/net/sockstat")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if namespaces, err := Mounted(dir); err != nil || len(namespaces) != 0 {
		t.Errorf("got %v, %v after it was removed", namespaces, err)
	}
}

// TestVisitRoute goes from one namespace to the next and returns. The thread stays where it is
// if the next one is gone.
func TestVisitRoute(t *testing.T) {
	home := here(t)
	var namespaces []Namespace
	for range 2 {
		dir := t.TempDir()
		netnstest.Mount(t, filepath.Join(dir, "ns"), nil)
		namespaces = append(namespaces, mounted(t, dir))
	}
	gone := Namespace{Inode: 1, paths: []string{"/nonexistent"}}
	err := Visit("/proc", func(v *Visitor) error {
		for _, ns := range slices.Concat(namespaces, namespaces) {
			if _, err := v.Enter(ns); err != nil || here(t) != ns.Inode {
				t.Errorf("in %d, %v, want %d", here(t), err, ns.Inode)
			}
			if _, err := v.Enter(gone); !errors.Is(err, ErrGone) || here(t) != ns.Inode {
				t.Errorf("in %d, %v, want %d, %v", here(t), err, ns.Inode, ErrGone)
			}
		}
		return nil
	})
	if err != nil || here(t) != home {
		t.Errorf("in %d, %v, want %d", here(t), err, home)
	}
}

// TestMountedUnreadable checks the error for a directory that cannot be listed.
func TestMountedUnreadable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{"/nonexistent": unix.ENOENT, file: unix.ENOTDIR} {
		if namespaces, err := Mounted(path); len(namespaces) != 0 || !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, %v, want %v", namespaces, err, want)
		}
	}
}

func TestMerge(t *testing.T) {
	got := Merge(
		[]Namespace{{Inode: 1, Name: "a"}, {Inode: 2, Name: "b"}, {Inode: 1, Name: "again"}},
		[]Namespace{{Inode: 3, PIDs: []int{30}}, {Inode: 1, PIDs: []int{10, 11}}},
		[]Namespace{{Inode: 3, Name: "c"}},
	)
	want := []Namespace{{Inode: 1, Name: "a", PIDs: []int{10, 11}}, {Inode: 2, Name: "b"}, {Inode: 3, Name: "c", PIDs: []int{30}}}
	if len(got) != len(want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for i := range want {
		if got[i].Inode != want[i].Inode || got[i].Name != want[i].Name || !slices.Equal(got[i].PIDs, want[i].PIDs) {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
}

// TestProcessEnded enters a namespace by another process after the first one ended.
func TestProcessEnded(t *testing.T) {
	// The first process starts the second and waits for it.
	cmd := exec.Command("sh", "-c", "sleep 600 & echo $!; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var second int
	if _, err := fmt.Fscan(out, &second); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(second, unix.SIGKILL) }()

	namespaces, _ := OfProcesses("/proc") // others may be forbidden
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for _, ns := range namespaces {
		if !slices.Contains(ns.PIDs, cmd.Process.Pid) {
			continue
		}
		if err := enter(ns, func(uint64) error { return nil }); err != nil {
			t.Errorf("after the first process ended: %v", err)
		}
		return
	}
	t.Error("the namespace was not found")
}

// TestForbidden checks that processes which the user may not examine are counted.
func TestForbidden(t *testing.T) {
	proc := t.TempDir()
	for name, link := range map[string]string{"7": "net:[4026531840]", "8": "net:[4026532000]", "9": ""} {
		dir := filepath.Join(proc, name, "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if link != "" {
			if err := os.Symlink(link, filepath.Join(dir, "net")); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The kernel refuses readlink(2) there. A directory without x has the same effect.
	forbidden := filepath.Join(proc, "8")
	if err := os.Chmod(forbidden, 0); err != nil {
		t.Fatal(err)
	}
	withoutCapabilities(t, func() {
		namespaces, err := OfProcesses(proc)
		var got *ForbiddenError
		if !errors.As(err, &got) || got.Forbidden != 1 || got.Examined != 1 || !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), forbidden) {
			t.Errorf("got %v", err)
		}
		if len(namespaces) != 1 || namespaces[0].Inode != 4026531840 || !slices.Equal(namespaces[0].PIDs, []int{7}) {
			t.Errorf("got %+v", namespaces)
		}
	})
}

// withoutCapabilities calls fn on a thread that has no capability in effect.
func withoutCapabilities(t *testing.T, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	none := data
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Fatal(err) // the thread stays locked
		}
	}()
	fn()
}
