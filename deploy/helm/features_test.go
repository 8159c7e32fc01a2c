package helm

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

const noFeatures = "{namespaces: self, owners: false}"

// TestNoFeatures checks that the pods have no privilege except the network of the node.
func TestNoFeatures(t *testing.T) {
	m := build(t, noFeatures)
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
	if diff := cmp.Diff(&core.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(int64(65534)), RunAsGroup: new(int64(65534)),
		SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
	}, pod.SecurityContext); diff != "" {
		t.Errorf("security context of the pod (-want +got):\n%s", diff)
	}
	c := pod.Containers[0]
	if len(pod.Volumes) != 0 || len(c.VolumeMounts) != 0 {
		t.Errorf("volumes %+v, mounts %+v", pod.Volumes, c.VolumeMounts)
	}
	if diff := cmp.Diff(&core.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
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
	if len(c.Env) != 1 || c.Env[0].Name != "GOMEMLIMIT" {
		t.Fatalf("environment %+v", c.Env)
	}
	soft, err := resource.ParseQuantity(strings.TrimSuffix(c.Env[0].Value, "B"))
	if err != nil || soft.Cmp(c.Resources.Limits[core.ResourceMemory]) >= 0 {
		t.Errorf("GOMEMLIMIT %s (%v), memory limit %s", c.Env[0].Value, err, c.Resources.Limits.Memory())
	}
}

// A need is a row of the table of capabilities in security.md.
type need struct {
	capability core.Capability
	flags      []string
	root       bool // root needs it too
}

// needs returns the table of capabilities in security.md.
func needs(t *testing.T) []need {
	t.Helper()
	var rows []need
	for _, m := range regexp.MustCompile(`(?m)^\| CAP_(\w+) \| ([^|]+) \| ([^|]+) \| (?:yes|no) \|$`).FindAllStringSubmatch(readFile(t, "../docs/security.md"), -1) {
		if strings.HasPrefix(m[3], "optional: ") {
			continue
		}
		rows = append(rows, need{
			capability: core.Capability(m[1]),
			flags:      strings.Split(strings.Trim(m[2], "`"), "`, `"),
			root:       !strings.HasSuffix(m[3], "not as root"),
		})
	}
	if len(rows) < 7 {
		t.Fatalf("security.md has %d capabilities: %v", len(rows), rows)
	}
	return rows
}

// hostMounts has the directories of the node that a flag needs.
var hostMounts = map[string]struct {
	name, hostPath string
	hostType       core.HostPathType
	mount          core.VolumeMount
}{
	"--path.cgroup=/host/sys/fs/cgroup":  {"cgroup", "/sys/fs/cgroup", core.HostPathDirectory, core.VolumeMount{MountPath: "/host/sys/fs/cgroup"}},
	"--path.pod-logs=/host/var/log/pods": {"pod-logs", "/var/log/pods", core.HostPathDirectory, core.VolumeMount{MountPath: "/host/var/log/pods"}},
	"--path.bpffs=/host/sys/fs/bpf":      {"bpf", "/sys/fs/bpf", core.HostPathDirectory, core.VolumeMount{MountPath: "/host/sys/fs/bpf", MountPropagation: new(core.MountPropagationHostToContainer)}},
	"--namespaces=named":                 {"netns", "/run/netns", core.HostPathDirectoryOrCreate, core.VolumeMount{MountPath: "/run/netns", MountPropagation: new(core.MountPropagationHostToContainer)}},
	"--namespaces=all":                   {"netns", "/run/netns", core.HostPathDirectoryOrCreate, core.VolumeMount{MountPath: "/run/netns", MountPropagation: new(core.MountPropagationHostToContainer)}},
}

// TestFeatures checks for each combination of features that the pods have the capabilities which the
// security.md tells for their flags, the mounts which these flags need, and no other privilege. A feature
// is a boolean at the top of values.yaml; its flag has the same name.
func TestFeatures(t *testing.T) {
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(readFile(t, "values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	combinations := [][]string{nil} // the flags that each of them has
	add := func(flags ...string) {
		var grown [][]string
		for _, c := range combinations {
			grown = append(grown, c)
			for _, f := range flags {
				grown = append(grown, append(slices.Clone(c), f))
			}
		}
		combinations = grown
	}
	add("--namespaces=named", "--namespaces=all")
	valueOf := map[string]string{"--namespaces=named": "namespaces: named", "--namespaces=all": "namespaces: all"}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, ok := values[name].(bool); !ok {
			continue
		}
		flag := "--" + strings.ToLower(regexp.MustCompile(`[A-Z]`).ReplaceAllString(name, "-$0"))
		switch name {
		case "owners":
			flag = "--path.cgroup=/host/sys/fs/cgroup"
		case "podNames":
			flag = "--path.pod-logs=/host/var/log/pods"
		case "cilium":
			flag = "--path.bpffs=/host/sys/fs/bpf"
		}
		valueOf[flag] = name + ": true"
		add(flag)
	}
	if len(combinations) < 24 {
		t.Fatalf("%d combinations", len(combinations))
	}
	needs := needs(t)
	for _, n := range needs {
		for _, flag := range n.flags {
			if valueOf[flag] == "" {
				t.Errorf("no value of the chart for %s", flag)
			}
		}
	}

	for _, flags := range combinations {
		if slices.Contains(flags, "--path.bpffs=/host/sys/fs/bpf") && !slices.Contains(flags, "--snat") {
			continue // the schema rejects it
		}
		off := "owners: false\n"
		var on string
		for _, flag := range flags {
			on += valueOf[flag] + "\n"
		}
		if strings.Contains(on, "owners: true") {
			off = ""
		}
		want, got := build(t, noFeatures).daemonSet, build(t, off+on).daemonSet
		pod := &want.Spec.Template.Spec
		c := &pod.Containers[0]
		c.Args = append(c.Args, flags...)
		for _, n := range needs {
			if n.root && slices.ContainsFunc(n.flags, func(f string) bool { return slices.Contains(flags, f) }) {
				c.SecurityContext.Capabilities.Add = append(c.SecurityContext.Capabilities.Add, n.capability)
			}
		}
		added := &c.SecurityContext.Capabilities.Add
		slices.Sort(*added)
		*added = slices.Compact(*added)
		if slices.Contains(flags, "--path.pod-logs=/host/var/log/pods") { // kubelet makes it with mode 0750, as root
			pod.SecurityContext.RunAsGroup = new(int64(0))
		}
		if len(*added) > 0 { // Kubernetes has no ambient capabilities
			pod.SecurityContext.RunAsNonRoot, pod.SecurityContext.RunAsUser, pod.SecurityContext.RunAsGroup = new(false), new(int64(0)), new(int64(0))
		}
		if slices.Contains(*added, "SYS_ADMIN") { // Kubernetes rejects false with it
			c.SecurityContext.AllowPrivilegeEscalation = new(true)
		}
		if slices.Contains(flags, "--namespaces=all") { // reads /proc/PID/ns of all processes
			pod.HostPID = true
			c.SecurityContext.AppArmorProfile = &core.AppArmorProfile{Type: core.AppArmorProfileTypeUnconfined}
		}
		for _, flag := range flags {
			if m, ok := hostMounts[flag]; ok {
				pod.Volumes = append(pod.Volumes, core.Volume{Name: m.name, VolumeSource: core.VolumeSource{
					HostPath: &core.HostPathVolumeSource{Path: m.hostPath, Type: &m.hostType},
				}})
				m.mount.Name, m.mount.ReadOnly = m.name, true
				c.VolumeMounts = append(c.VolumeMounts, m.mount)
			}
		}
		for _, p := range []*core.PodSpec{pod, &got.Spec.Template.Spec} {
			slices.Sort(p.Containers[0].Args)
			slices.SortFunc(p.Volumes, func(a, b core.Volume) int { return strings.Compare(a.Name, b.Name) })
			slices.SortFunc(p.Containers[0].VolumeMounts, func(a, b core.VolumeMount) int { return strings.Compare(a.Name, b.Name) })
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", flags, diff)
		}
	}
}

// TestProbes checks that probes ask whether the process serves, unless that needs a password.
func TestProbes(t *testing.T) {
	http := func(path string) *core.Probe {
		return &core.Probe{InitialDelaySeconds: 2, ProbeHandler: core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: path, Port: intstr.FromString("metrics")}}, TimeoutSeconds: 5}
	}
	tcp := &core.Probe{InitialDelaySeconds: 2, ProbeHandler: core.ProbeHandler{TCPSocket: &core.TCPSocketAction{Port: intstr.FromString("metrics")}}}
	for _, test := range []struct {
		values      string
		live, ready *core.Probe
	}{
		{"{}", http("/-/healthy"), http("/-/ready")},
		{"webConfig: {secretName: exporter-web}", tcp, tcp},
		{"webConfig: {secretName: exporter-web, tls: true}", tcp, tcp},
	} {
		c := build(t, test.values).daemonSet.Spec.Template.Spec.Containers[0]
		if diff := cmp.Diff([]*core.Probe{test.live, test.ready}, []*core.Probe{c.LivenessProbe, c.ReadinessProbe}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.values, diff)
		}
	}
}

// TestWebConfig checks that the exporter reads its configuration from the secret.
func TestWebConfig(t *testing.T) {
	pod := build(t, "{owners: false, webConfig: {secretName: exporter-web, key: my.yml}}").daemonSet.Spec.Template.Spec
	if len(pod.Volumes) != 1 || len(pod.Containers[0].VolumeMounts) != 1 {
		t.Fatalf("volumes %+v, mounts %+v", pod.Volumes, pod.Containers[0].VolumeMounts)
	}
	volume, mount := pod.Volumes[0], pod.Containers[0].VolumeMounts[0]
	if volume.Secret == nil || volume.Secret.SecretName != "exporter-web" || mount.Name != volume.Name || !mount.ReadOnly {
		t.Errorf("volume %+v, mount %+v", volume, mount)
	}
	if flag := "--web.config.file=" + mount.MountPath + "/my.yml"; !slices.Contains(pod.Containers[0].Args, flag) {
		t.Errorf("arguments %v, want %s", pod.Containers[0].Args, flag)
	}
}

// TestAgrees checks that the chart agrees with the image, the README and its own selectors.
func TestAgrees(t *testing.T) {
	pods := build(t, "{monitor: {enabled: true}}")
	services := build(t, "{monitor: {enabled: true, kind: ServiceMonitor}}")
	podLabels := pods.daemonSet.Spec.Template.Labels
	for _, test := range []struct {
		name             string
		selector, labels map[string]string
	}{
		{"DaemonSet", pods.daemonSet.Spec.Selector.MatchLabels, podLabels},
		{"PodMonitor", pods.podMonitor.Spec.Selector.MatchLabels, podLabels},
		{"Service", services.service.Spec.Selector, podLabels},
		{"ServiceMonitor", services.serviceMonitor.Spec.Selector.MatchLabels, services.service.Labels},
	} {
		if len(test.selector) != 2 {
			t.Errorf("%s selects %v", test.name, test.selector)
		}
		for k, v := range test.selector {
			if test.labels[k] != v {
				t.Errorf("%s selects %s=%s, not %v", test.name, k, v, test.labels)
			}
		}
	}

	c := pods.daemonSet.Spec.Template.Spec.Containers[0]
	dockerfile, readme := readFile(t, "../../Dockerfile"), readFile(t, "../../README.md")
	expose := regexp.MustCompile(`(?m)^EXPOSE (\d+)$`).FindStringSubmatch(dockerfile)
	if expose == nil || len(c.Ports) != 1 || fmt.Sprint(c.Ports[0].ContainerPort) != expose[1] || !slices.Contains(c.Args, "--web.listen-address=:"+expose[1]) {
		t.Errorf("ports %+v, arguments %v, the image exposes %v", c.Ports, c.Args, expose)
	}
	image, _, _ := strings.Cut(c.Image, ":")
	if !strings.Contains(dockerfile, "ENTRYPOINT [\"/"+image+"\"]") || !strings.Contains(readme, "docker build -t "+image+" ") {
		t.Errorf("image %s, not that of the Dockerfile and the README", c.Image)
	}
	for _, port := range []*string{pods.podMonitor.Spec.PodMetricsEndpoints[0].Port, &services.serviceMonitor.Spec.Endpoints[0].Port} {
		if port == nil || *port != c.Ports[0].Name {
			t.Errorf("a monitor scrapes port %v", port)
		}
	}
	if port := services.service.Spec.Ports[0]; port.Name != c.Ports[0].Name || port.TargetPort.StrVal != c.Ports[0].Name {
		t.Errorf("Service: %+v", port)
	}
}
