package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	testPod       = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
	testContainer = "9b1c7a0de4f35a6b8c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b"
)

// TestParseCgroup parses the forms that container runtimes and kubelet document or write, with
// cgroup versions 1 and 2 and the drivers systemd and cgroupfs.
func TestParseCgroup(t *testing.T) {
	pod := strings.ReplaceAll(testPod, "-", "_")
	tests := []struct {
		name, content string
		want          Workload
	}{
		{"empty", "", Workload{}},
		{"malformed", "0:\nx\n::\n", Workload{}},
		{"host process", "0::/system.slice/ssh.service\n", Workload{}},
		{"root", "0::/\n", Workload{}},
		{"hexadecimal but short", "0::/system.slice/run-9b1c7a0de4f35a6b.scope\n", Workload{}},
		{"hexadecimal but long", "0::/" + testContainer + "0\n", Workload{}},
		{"Docker, systemd", "0::/system.slice/docker-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		{"Docker, cgroupfs, v1", "12:pids:/docker/" + testContainer + "\n1:name=systemd:/docker/" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"Docker in Docker", "0::/docker/" + testContainer + "/init\n", Workload{ContainerID: testContainer}},
		{
			"containerd, systemd, v2",
			"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"containerd, guaranteed", "0::/kubepods.slice/kubepods-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"containerd, cgroupfs, v1",
			"11:memory:/kubepods/besteffort/pod" + testPod + "/" + testContainer + "\n10:cpu,cpuacct:/kubepods/besteffort/pod" + testPod + "/" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"containerd without cgroup namespace, v1",
			"4:devices:/system.slice/containerd.service/kubepods-burstable-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"CRI-O", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + pod + ".slice/crio-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"CRI-O, nested", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + pod + ".slice/crio-" + testContainer + ".scope/container\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"CRI-O monitor", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + pod + ".slice/crio-conmon-" + testContainer + ".scope\n",
			Workload{PodUID: testPod},
		},
		{
			"static pod", "0::/kubepods/burstable/pod3f8e1c2a5b6d4e7f8a9b0c1d2e3f4a5b/" + testContainer + "\n",
			Workload{PodUID: "3f8e1c2a5b6d4e7f8a9b0c1d2e3f4a5b", ContainerID: testContainer},
		},
		{
			"seen from another cgroup namespace", "0::/../../kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{"Podman, systemd", "0::/machine.slice/libpod-" + testContainer + ".scope/container\n", Workload{ContainerID: testContainer}},
		{"Podman, cgroupfs", "0::/libpod_parent/libpod-" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"Podman, rootless", "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		{"Podman monitor", "0::/machine.slice/libpod-conmon-" + testContainer + ".scope\n", Workload{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, parseCgroup(tt.content)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWorkloadOf(t *testing.T) {
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "7"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "7/cgroup"), []byte("0::/docker/"+testContainer+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]Workload{7: {ContainerID: testContainer}, 8: {}} {
		if got := WorkloadOf(proc, pid); got != want {
			t.Errorf("process %d: got %+v, want %+v", pid, got, want)
		}
	}
}

// FuzzParseCgroup parses any content: a container chooses the names of its own cgroups.
func FuzzParseCgroup(f *testing.F) {
	f.Add("0::/kubepods.slice/kubepods-pod" + testPod + ".slice/cri-containerd-" + testContainer + ".scope\n")
	f.Fuzz(func(t *testing.T, content string) {
		o := parseCgroup(content)
		if n := len(o.ContainerID); n != 0 && n != 64 {
			t.Errorf("container %q", o.ContainerID)
		}
		if n := len(o.PodUID); n != 0 && (n < 32 || n > 36) {
			t.Errorf("pod %q", o.PodUID)
		}
	})
}
