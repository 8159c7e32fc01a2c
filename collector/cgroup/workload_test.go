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

// TestParseCgroup parses the paths of kubelet and container engines, with cgroup versions 1 and 2 and the drivers systemd
// and cgroupfs. The comments name the code or the document that has the path.
func TestParseCgroup(t *testing.T) {
	pod := strings.ReplaceAll(testPod, "-", "_")
	const other = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
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

		// kubernetes pkg/kubelet/cm: cgroup_manager_linux.go (drivers, QoS classes), pod_container_manager_linux.go ("pod" and the UID).
		// containerd internal/cri/server: "cri-containerd"; cri-o internal/config/cgmgr: "crio"; cri-dockerd: "docker".
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
		{"cgroupfs, guaranteed", "0::/kubepods/pod" + testPod + "/" + testContainer + "\n", Workload{PodUID: testPod, ContainerID: testContainer}},
		{
			"Docker of a kubelet", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + pod + ".slice/docker-" + testContainer + ".scope\n",
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
		{"CRI-O, cgroupfs", "0::/kubepods/burstable/pod" + testPod + "/crio-" + testContainer + "\n", Workload{PodUID: testPod, ContainerID: testContainer}},
		{
			"CRI-O monitor", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + pod + ".slice/crio-conmon-" + testContainer + ".scope\n",
			Workload{PodUID: testPod},
		},
		{
			"static pod", "0::/kubepods/burstable/pod3f8e1c2a5b6d4e7f8a9b0c1d2e3f4a5b/" + testContainer + "\n",
			Workload{PodUID: "3f8e1c2a5b6d4e7f8a9b0c1d2e3f4a5b", ContainerID: testContainer},
		},
		{"pod without a container", "0::/kubepods/burstable/pod" + testPod + "\n", Workload{PodUID: testPod}},
		// kind pkg/cluster/internal/kubeadm/config.go: cgroupRoot: /kubelet, as seen in the node.
		{
			"kind, systemd",
			"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{"kind, cgroupfs", "0::/kubelet/kubepods/besteffort/pod" + testPod + "/" + testContainer + "\n", Workload{PodUID: testPod, ContainerID: testContainer}},
		// The path of OCI "slice:prefix:name" taken as a directory by runc with the cgroupfs driver: relative to containerd in the
		// controllers that systemd uses, else to the root.
		{
			"containerd without SystemdCgroup, v1",
			"4:devices:/system.slice/containerd.service/kubepods-burstable-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"containerd without SystemdCgroup, v1, at the root", "4:freezer:/kubepods-besteffort-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"k3s without SystemdCgroup, v1", "4:devices:/system.slice/k3s.service/kubepods-burstable-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"RKE2 agent without SystemdCgroup, v1", "4:devices:/system.slice/rke2-agent.service/kubepods-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		// containerd/containerd#11589, kubernetes/kubernetes#130982: containers of pods with user namespaces, not their sandboxes.
		{
			"containerd, user namespace, v2", "0::/system.slice/kubepods-besteffort-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"containerd, user namespace, inside", "0::/system.slice/kubepods-pod" + pod + ".slice:cri-containerd:" + testContainer + "/init.scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"containerd, user namespace, seen from a pod of the kind", "0::/../kubepods-besteffort-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"kind, user namespace", "0::/system.slice/kubelet-kubepods-burstable-pod" + pod + ".slice:cri-containerd:" + testContainer + "\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		// cgroup_namespaces(7): "/.." for each level above the root of the reader's namespace.
		{
			"of another class, seen from a pod",
			"0::/../../../kubepods-burstable.slice/kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{
			"of the same class, seen from a pod", "0::/../../kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope\n",
			Workload{PodUID: testPod, ContainerID: testContainer},
		},
		{"of the same pod", "0::/../cri-containerd-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		{"cgroupfs, seen from a pod", "0::/../../pod" + testPod + "/" + testContainer + "\n", Workload{PodUID: testPod, ContainerID: testContainer}},
		{"Docker, seen from a container", "0::/../docker-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		{"Docker, cgroupfs, seen from a container", "0::/../" + testContainer + "\n", Workload{ContainerID: testContainer}},

		// moby daemon/oci_linux.go: cgroup-parent "/docker", with systemd "system.slice" and "docker".
		{"Docker, systemd", "0::/system.slice/docker-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		{"Docker, cgroupfs, v1", "12:pids:/docker/" + testContainer + "\n1:name=systemd:/docker/" + testContainer + "\n", Workload{ContainerID: testContainer}},
		// moby/moby#24424, kata-containers: the path of OCI of Docker's systemd driver, taken as a directory.
		{"Docker, path of OCI", "0::/system.slice:docker:" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"Docker, path of OCI, in a slice", "0::/system.slice/system.slice:docker:" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"a step of BuildKit", "0::/system.slice/system.slice:docker:jvifp9a6b1lxa1kuw8bwfcovf\n", Workload{}},
		// Whoever makes a container of LXC chooses its name.
		{"LXC", "0::/lxc/" + testContainer + "\n", Workload{}},
		{"Docker in Docker", "0::/docker/" + testContainer + "/docker/" + other + "\n", Workload{ContainerID: testContainer}},
		{"Docker, slice of its own", "0::/batch.slice/batch-night.slice/docker-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		// amazon-ecs-agent: /ecs/TASK/CONTAINER, /ecs/CLUSTER/TASK/CONTAINER, with systemd ecstasks-TASK.slice.
		{"ECS", "9:cpu:/ecs/55091c13-b8cf-4801-b527-f4601742204d/" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"ECS, cluster", "9:cpu:/ecs/blue/55091c13b8cf4801b527f4601742204d/" + testContainer + "/" + other + "\n", Workload{ContainerID: testContainer}},
		{"ECS, systemd", "0::/ecstasks.slice/ecstasks-55091c13b8cf4801b527f4601742204d.slice/docker-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		// containerd oci.WithNamespaceCgroup: /NAMESPACE/CONTAINER; nerdctl pkg/cmd/container: system.slice:nerdctl:CONTAINER.
		{"nerdctl, cgroupfs", "0::/default/" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"containerd, CRI, no parent", "0::/k8s.io/" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"nerdctl, systemd", "0::/system.slice/nerdctl-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		// podman libpod: CgroupfsDefaultCgroupParent "/libpod_parent", SystemdDefaultCgroupParent "machine.slice", pods in one of their own.
		{"Podman, systemd", "0::/machine.slice/libpod-" + testContainer + ".scope/container\n", Workload{ContainerID: testContainer}},
		{"Podman, systemd, pod", "0::/machine.slice/machine-libpod_pod_" + other + ".slice/libpod-" + testContainer + ".scope\n", Workload{ContainerID: testContainer}},
		{"Podman, cgroupfs", "0::/libpod_parent/libpod-" + testContainer + "\n", Workload{ContainerID: testContainer}},
		{"Podman, cgroupfs, pod", "0::/libpod_parent/" + other + "/libpod-" + testContainer + "\n", Workload{ContainerID: testContainer}},
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

// TestParseCgroupForged puts what passes for a pod or a container inside of what a tenant may make control groups in. None
// gets the names of another.
func TestParseCgroupForged(t *testing.T) {
	pod := strings.ReplaceAll(testPod, "-", "_")
	const own = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	forged := []string{
		"/pod" + testPod + "/" + testContainer,
		"/kubepods/burstable/pod" + testPod + "/" + testContainer,
		"/kubelet/kubepods/pod" + testPod + "/" + testContainer,
		"/kubepods.slice/kubepods-pod" + pod + ".slice/cri-containerd-" + testContainer + ".scope",
		"/kubepods-pod" + pod + ".slice:cri-containerd:" + testContainer, "/system.slice/kubepods-pod" + pod + ".slice:cri-containerd:" + testContainer,
		"/system.slice/k3s.service/kubepods-pod" + pod + ".slice:cri-containerd:" + testContainer, "/system.slice:docker:" + testContainer,
		"/docker/" + testContainer, "/" + testContainer, "/system.slice/docker-" + testContainer + ".scope",
		"/machine.slice/libpod-" + testContainer + ".scope", "/libpod_parent/libpod-" + testContainer, "/ecs/task/" + testContainer,
	}
	for inside, want := range map[string]Workload{
		"/user.slice/user-1000.slice/user@1000.service":                                              {}, // systemd, user instance
		"/user.slice/user-1000.slice/user@1000.service/user.slice":                                   {}, // rootless Docker and Podman
		"/user.slice/user-1000.slice/user@1000.service/app.slice/usernetes.service":                  {},
		"/user.slice/user-1000.slice/session-3.scope":                                                {},
		"/../../../user.slice/user-1000.slice/user@1000.service":                                     {}, // seen from a cgroup namespace
		"/../user@1000.service":                                                                      {},
		"/system.slice/batch.service":                                                                {}, // Delegate=, User=
		"/system.slice/containerd.service/x":                                                         {},
		"/system.slice/k3s.service/x":                                                                {},
		"/system.slice/system.slice:docker:" + own:                                                   {ContainerID: own},
		"/system.slice/kubepods-pod00000000_0000_0000_0000_000000000000.slice:cri-containerd:" + own: {PodUID: "00000000-0000-0000-0000-000000000000", ContainerID: own},
		"/machine.slice/machine-guest.scope/payload":                                                 {}, // systemd-nspawn
		"/lxc.payload.guest":                                                                         {}, // Incus, LXC
		"/lxc/guest":                                                                                 {},
		"/user/alice/0":                                                                              {}, // pam_cgfs
		"/docker/" + own:                                                                             {ContainerID: own},
		"/system.slice/docker-" + own + ".scope":                                                     {ContainerID: own},
		"/machine.slice/libpod-" + own + ".scope":                                                    {ContainerID: own},
		"/ecs/task/" + own:                                                                           {ContainerID: own},
		"/kubepods/pod00000000-0000-0000-0000-000000000000/" + own:                                   {PodUID: "00000000-0000-0000-0000-000000000000", ContainerID: own},
		"/kubepods.slice/kubepods-pod00000000_0000_0000_0000_000000000000.slice/crio-" + own + ".scope":             {PodUID: "00000000-0000-0000-0000-000000000000", ContainerID: own},
		"/kubepods/burstable/pod00000000-0000-0000-0000-000000000000/kata_" + own + "/x":                            {PodUID: "00000000-0000-0000-0000-000000000000"},
		"/system.slice/containerd.service/kubepods-pod00000000000000000000000000000000.slice:cri-containerd:" + own: {PodUID: "00000000000000000000000000000000", ContainerID: own},
	} {
		for _, path := range append(forged, "") {
			for _, prefix := range []string{"0::", "1:name=systemd:"} {
				if got := parseCgroup(prefix + inside + path + "\n"); got != want {
					t.Errorf("%s%s: %+v, want %+v", inside, path, got, want)
				}
			}
		}
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
	f.Add("../../pod" + testPod + "/" + testContainer)
	f.Fuzz(func(t *testing.T, content string) {
		o := parseCgroup(content)
		if inside := "/user.slice/user-1000.slice/user@1000.service/"; parsePath(inside+content) != (Workload{}) {
			t.Errorf("%q makes a workload of a user's control group", content)
		}
		if n := len(o.ContainerID); n != 0 && n != 64 {
			t.Errorf("container %q", o.ContainerID)
		}
		if n := len(o.PodUID); n != 0 && (n < 32 || n > 36) {
			t.Errorf("pod %q", o.PodUID)
		}
	})
}
