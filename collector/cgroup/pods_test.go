package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// makePodLogs makes a directory with these directories.
func makePodLogs(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPods(t *testing.T) {
	const static, other = "0123456789abcdef0123456789abcdef", "77777777-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
	long := strings.Repeat("a", 57)
	dir := makePodLogs(t,
		"shop_cart-7d4b9c6f5-x2k8p_"+testPod,
		"kube-system_kube-proxy-worker.example.com_"+static,
		long+"_"+long+"."+long+"_88888888-5b6d-4e7f-8a9b-0c1d2e3f4a5b",
		"a_one_"+other, "b_two_"+other, // none is sure
		"lost+found", "shop_cart_", "shop_cart_"+testPod+"0", "_cart_99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b",
		"shop__99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b", "shop_x_cart_99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b",
		"Shop_cart_99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b", "shop_-cart_99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b",
		"shop_\x1b[31m_99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b", "sh.op_cart_99999999-5b6d-4e7f-8a9b-0c1d2e3f4a5b",
	)
	got, err := Pods(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		testPod: "shop/cart-7d4b9c6f5-x2k8p", static: "kube-system/kube-proxy-worker.example.com",
		"88888888-5b6d-4e7f-8a9b-0c1d2e3f4a5b": long + "/" + long + "." + long, other: "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	if got, err := Pods(makePodLogs(t)); err != nil || len(got) > 0 {
		t.Errorf("empty: %v, %v", got, err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"absent": filepath.Join(dir, "absent"), "a file": "/proc/self/comm", "a FIFO": fifo} {
		if got, err := Pods(path); err == nil || len(got) > 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := Pods(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

// TestPodsBound reads a part of a directory that has too many.
func TestPodsBound(t *testing.T) {
	dir := t.TempDir()
	for i := range maxPods + 9 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("shop_cart-%d_%08x-5b6d-4e7f-8a9b-0c1d2e3f4a5b", i, i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Pods(dir); err != nil || len(got) != maxPods {
		t.Errorf("%d pods, %v", len(got), err)
	}
}
