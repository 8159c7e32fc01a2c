// Package kubernetes checks the manifests of this directory without a cluster.
package kubernetes

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// readFile returns the content of a file of the repository.
func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A manifest holds all objects of a kustomization.
type manifest struct {
	namespace core.Namespace
	account   core.ServiceAccount
	daemonSet apps.DaemonSet
	monitor   monitoring.PodMonitor
	rule      monitoring.PrometheusRule
}

// build builds the manifest and decodes it strictly: unknown and duplicate fields are errors.
func build(t *testing.T, path string) manifest {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	into := map[string]any{
		"Namespace": &m.namespace, "ServiceAccount": &m.account, "DaemonSet": &m.daemonSet,
		"PodMonitor": &m.monitor, "PrometheusRule": &m.rule,
	}
	for _, r := range resources.Resources() {
		b, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, ok := into[r.GetKind()]
		if !ok {
			t.Errorf("%s is not expected, or there twice", r.GetKind())
			continue
		}
		delete(into, r.GetKind())
		if err := yaml.UnmarshalStrict(b, object); err != nil {
			t.Errorf("%s: %v", r.GetKind(), err)
		}
		if r.GetNamespace() != "ephemeral-port-exporter" && r.GetKind() != "Namespace" {
			t.Errorf("%s is in namespace %q", r.GetKind(), r.GetNamespace())
		}
	}
	for kind := range into {
		t.Errorf("no %s", kind)
	}
	return m
}

// TestBase checks that the base has no privilege except the network of the node. It reads the control
// groups of the node.
func TestBase(t *testing.T) {
	m := build(t, "base")
	if m.namespace.Name != "ephemeral-port-exporter" {
		t.Errorf("namespace %q", m.namespace.Name)
	}
	if token := m.account.AutomountServiceAccountToken; token == nil || *token {
		t.Error("the service account mounts its token")
	}

	update := m.daemonSet.Spec.UpdateStrategy.RollingUpdate
	if update == nil || update.MaxUnavailable == nil || *update.MaxUnavailable != intstr.FromInt32(1) {
		t.Errorf("update strategy %+v", m.daemonSet.Spec.UpdateStrategy)
	}
	pod := m.daemonSet.Spec.Template.Spec
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.InitContainers) != 0 || len(pod.Containers) != 1 {
		t.Errorf("pod: %+v", pod)
	}
	if pod.ServiceAccountName != m.account.Name || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Errorf("service account %q, token %v", pod.ServiceAccountName, pod.AutomountServiceAccountToken)
	}
	if diff := cmp.Diff([]core.Toleration{{Operator: core.TolerationOpExists}}, pod.Tolerations); diff != "" {
		t.Errorf("tolerations (-want +got):\n%s", diff)
	}
	ptr := func(n int64) *int64 { return &n }
	yes, no := true, false
	if diff := cmp.Diff(&core.PodSecurityContext{
		RunAsNonRoot: &yes, RunAsUser: ptr(65534), RunAsGroup: ptr(65534),
		SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
	}, pod.SecurityContext); diff != "" {
		t.Errorf("security context of the pod (-want +got):\n%s", diff)
	}
	c := pod.Containers[0]
	directory := core.HostPathDirectory
	if diff := cmp.Diff([]core.Volume{{Name: "cgroup", VolumeSource: core.VolumeSource{
		HostPath: &core.HostPathVolumeSource{Path: "/sys/fs/cgroup", Type: &directory},
	}}}, pod.Volumes); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	mount := core.VolumeMount{Name: "cgroup", MountPath: "/host/sys/fs/cgroup", ReadOnly: true}
	if diff := cmp.Diff([]core.VolumeMount{mount}, c.VolumeMounts); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	if !slices.Contains(c.Args, "--path.cgroup="+mount.MountPath) {
		t.Errorf("arguments %v do not name the mount", c.Args)
	}
	if diff := cmp.Diff(&core.SecurityContext{
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &core.Capabilities{Drop: []core.Capability{"ALL"}},
	}, c.SecurityContext); diff != "" {
		t.Errorf("security context of the container (-want +got):\n%s", diff)
	}
	for _, name := range []core.ResourceName{core.ResourceCPU, core.ResourceMemory} {
		request, limit := c.Resources.Requests[name], c.Resources.Limits[name]
		if request.IsZero() || limit.IsZero() || limit.Cmp(request) < 0 {
			t.Errorf("%s: request %v, limit %v", name, &request, &limit)
		}
	}
	// HTTP probes would need the TLS and the password of --web.config.file.
	for name, probe := range map[string]*core.Probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if probe == nil || probe.TCPSocket == nil || probe.TCPSocket.Port.StrVal != "metrics" {
			t.Errorf("%s probe: %+v", name, probe)
		}
	}
}

// TestBaseAgrees checks that the base agrees with the image, the program and its own selectors.
func TestBaseAgrees(t *testing.T) {
	m := build(t, "base")
	labels := m.daemonSet.Spec.Template.Labels
	for name, selector := range map[string]map[string]string{
		"DaemonSet": m.daemonSet.Spec.Selector.MatchLabels, "PodMonitor": m.monitor.Spec.Selector.MatchLabels,
	} {
		if len(selector) == 0 {
			t.Errorf("%s selects everything", name)
		}
		for k, v := range selector {
			if labels[k] != v {
				t.Errorf("%s selects %s=%s, the pods have %v", name, k, v, labels)
			}
		}
	}

	dockerfile := readFile(t, "../../Dockerfile")
	expose := regexp.MustCompile(`(?m)^EXPOSE (\d+)$`).FindStringSubmatch(dockerfile)
	c := m.daemonSet.Spec.Template.Spec.Containers[0]
	if expose == nil || len(c.Ports) != 1 || fmt.Sprint(c.Ports[0].ContainerPort) != expose[1] ||
		!strings.Contains(strings.Join(c.Args, " "), "--web.listen-address=:"+expose[1]) {
		t.Errorf("ports %+v, arguments %v, the image exposes %v", c.Ports, c.Args, expose)
	}
	image, _, _ := strings.Cut(c.Image, ":")
	if !strings.Contains(dockerfile, "ENTRYPOINT [\"/"+image+"\"]") {
		t.Errorf("image %s, not that of the Dockerfile", c.Image)
	}
	endpoints := m.monitor.Spec.PodMetricsEndpoints
	if len(endpoints) != 1 || endpoints[0].Port == nil || *endpoints[0].Port != c.Ports[0].Name {
		t.Errorf("PodMonitor: %+v", endpoints)
	}
	readme := readFile(t, "../../README.md")
	if !strings.Contains(readme, "docker build -t "+image+" ") {
		t.Errorf("the README builds another image than %s", image)
	}
}

// TestAllNamespaces checks that the overlay adds what is needed to enter network namespaces, and
// nothing else.
func TestAllNamespaces(t *testing.T) {
	want, got := build(t, "base").daemonSet.Spec.Template.Spec, build(t, "overlays/all-namespaces").daemonSet.Spec.Template.Spec
	yes, no, root := true, false, int64(0)
	fromHost, create := core.MountPropagationHostToContainer, core.HostPathDirectoryOrCreate

	want.HostPID = true
	want.SecurityContext.RunAsNonRoot, want.SecurityContext.RunAsUser, want.SecurityContext.RunAsGroup = &no, &root, &root
	c := &want.Containers[0]
	c.Args = append(c.Args, "--namespaces=all")
	c.SecurityContext.AllowPrivilegeEscalation = &yes
	c.SecurityContext.Capabilities.Add = []core.Capability{"SYS_ADMIN", "SYS_PTRACE"}
	c.SecurityContext.AppArmorProfile = &core.AppArmorProfile{Type: core.AppArmorProfileTypeUnconfined}
	c.VolumeMounts = append([]core.VolumeMount{{Name: "netns", MountPath: "/run/netns", MountPropagation: &fromHost, ReadOnly: true}}, c.VolumeMounts...)
	want.Volumes = append([]core.Volume{{Name: "netns", VolumeSource: core.VolumeSource{
		HostPath: &core.HostPathVolumeSource{Path: "/run/netns", Type: &create},
	}}}, want.Volumes...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
}

// TestConnectFailures checks that the overlay adds what an eBPF program needs, and nothing else.
func TestConnectFailures(t *testing.T) {
	want, got := build(t, "base").daemonSet.Spec.Template.Spec, build(t, "overlays/connect-failures").daemonSet.Spec.Template.Spec
	no, root := false, int64(0)
	directory := core.HostPathDirectory

	want.SecurityContext.RunAsNonRoot, want.SecurityContext.RunAsUser, want.SecurityContext.RunAsGroup = &no, &root, &root
	c := &want.Containers[0]
	c.Args = append(c.Args, "--connect-failures")
	c.SecurityContext.Capabilities.Add = []core.Capability{"BPF", "PERFMON"}
	c.VolumeMounts = append([]core.VolumeMount{{Name: "tracefs", MountPath: "/sys/kernel/tracing", ReadOnly: true}}, c.VolumeMounts...)
	want.Volumes = append([]core.Volume{{Name: "tracefs", VolumeSource: core.VolumeSource{
		HostPath: &core.HostPathVolumeSource{Path: "/sys/kernel/tracing", Type: &directory},
	}}}, want.Volumes...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
}

// TestExact checks that the overlay adds what an eBPF program needs, and nothing else.
func TestExact(t *testing.T) {
	want, got := build(t, "base").daemonSet.Spec.Template.Spec, build(t, "overlays/exact").daemonSet.Spec.Template.Spec
	no, root := false, int64(0)
	want.SecurityContext.RunAsNonRoot, want.SecurityContext.RunAsUser, want.SecurityContext.RunAsGroup = &no, &root, &root
	c := &want.Containers[0]
	c.Args = append(c.Args, "--exact")
	c.SecurityContext.Capabilities.Add = []core.Capability{"BPF", "PERFMON"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
}

// TestPrometheusRule checks that the PrometheusRule has the same groups as the rule file.
func TestPrometheusRule(t *testing.T) {
	var want monitoring.PrometheusRuleSpec
	if err := yaml.UnmarshalStrict([]byte(readFile(t, "../prometheus/rules.yml")), &want); err != nil {
		t.Fatal(err)
	}
	if len(want.Groups) == 0 {
		t.Fatal("no groups in rules.yml")
	}
	if diff := cmp.Diff(want, build(t, "base").rule.Spec); diff != "" {
		t.Errorf("(-rules.yml +prometheusrule.yaml):\n%s", diff)
	}
}
