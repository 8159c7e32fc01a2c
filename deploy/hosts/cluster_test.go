//go:build kubernetes

package hosts

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The node is the host of .ci/host.
const nodeIP = "198.18.0.2"

// users are those of the API server, and their groups.
var users = map[string]string{
	"admin":                          "system:masters",
	"system:kube-controller-manager": "",
	"system:kube-proxy":              "",
	"system:kube-scheduler":          "",
	"system:node:node1":              "system:nodes",
}

// configurations are the files of the cluster, in /etc and below.
var configurations = map[string]string{
	"containerd/config.toml": `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/load:1"
  restrict_oom_score_adj = true # root of the host may not lower it
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
`,
	"kubernetes/kubelet.yml": `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 50Mi}
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
`,
}

// prepare starts a cluster with the programs of .ci/kubernetes, and imports the images.
func prepare() error {
	for path, content := range configurations {
		if err := write(path, content); err != nil {
			return err
		}
	}
	var tokens strings.Builder
	for user, group := range users {
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", user, user, user, group)
		if err := os.WriteFile(kubeconfig(user), []byte(`apiVersion: v1
kind: Config
clusters: [{name: cluster, cluster: {server: "https://`+nodeIP+`:6443", insecure-skip-tls-verify: true}}]
users: [{name: user, user: {token: "`+user+`"}}]
contexts: [{name: context, context: {cluster: cluster, user: user}}]
current-context: context
`), 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/etc/kubernetes/tokens", []byte(tokens.String()), 0o600); err != nil {
		return err
	}
	os.Setenv("KUBECONFIG", kubeconfig("admin"))
	if _, err := command("sysctl -qw net.ipv4.ip_forward=1 && openssl genrsa -out /etc/kubernetes/sa.key 2048"); err != nil {
		return err
	}

	if err := start("containerd"); err != nil {
		return err
	}
	if err := ready("ctr version"); err != nil {
		return err
	}
	if err := importImages(); err != nil {
		return err
	}
	if err := errors.Join(
		start("etcd", "--data-dir=/run/etcd", "--unsafe-no-fsync"),
		start("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--advertise-address="+nodeIP, "--cert-dir=/run/kube-apiserver",
			"--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=Node,RBAC", "--allow-privileged", "--token-auth-file=/etc/kubernetes/tokens",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=/etc/kubernetes/sa.key",
			"--service-account-signing-key-file=/etc/kubernetes/sa.key", "--kubelet-preferred-address-types=InternalIP"),
	); err != nil {
		return err
	}
	if err := ready("kubectl get --raw /readyz"); err != nil {
		return err
	}
	if err := errors.Join(
		start("kube-controller-manager", "--kubeconfig="+kubeconfig("system:kube-controller-manager"), "--leader-elect=false",
			"--service-account-private-key-file=/etc/kubernetes/sa.key", "--root-ca-file=/run/kube-apiserver/apiserver.crt", "--use-service-account-credentials",
			"--allocate-node-cidrs", "--cluster-cidr=10.244.0.0/16"),
		start("kube-scheduler", "--kubeconfig="+kubeconfig("system:kube-scheduler"), "--leader-elect=false"),
		start("kubelet", "--config=/etc/kubernetes/kubelet.yml", "--kubeconfig="+kubeconfig("system:node:node1"), "--hostname-override=node1", "--node-ip="+nodeIP),
		startNetwork(),
	); err != nil {
		return err
	}
	if err := ready("kubectl wait --for=condition=Ready --timeout=2s node/node1 && kubectl get serviceaccount default"); err != nil {
		return err
	}
	version, err := command("kubectl version; containerd --version; etcd --version")
	if err != nil {
		return err
	}
	fmt.Println(version)

	return nil
}

// write writes a file below /etc.
func write(path, content string) error {
	path = filepath.Join("/etc", path)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600))
}

// kubeconfig returns the path of a user's configuration.
func kubeconfig(user string) string {
	return "/etc/kubernetes/" + strings.ReplaceAll(user, ":", "-") + ".conf"
}

// running has the programs of the cluster by name.
var running = map[string]*exec.Cmd{}

// start starts a program of the cluster. Its log is in /tmp.
func start(name string, args ...string) error {
	log, err := os.OpenFile("/tmp/"+name+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	running[name] = cmd
	return cmd.Start()
}

// ready waits until a command of the shell succeeds. The error has the last events, and the ends of all logs.
func ready(line string) error {
	err := eventually(2*time.Minute, func() error { _, err := command(line); return err })
	if err == nil {
		return nil
	}
	events, _ := command("kubectl get events --output custom-columns=:.type,:.involvedObject.name,:.message | tail -n 20")
	err = fmt.Errorf("%w\n%s", err, events)
	for _, name := range slices.Sorted(maps.Keys(running)) {
		tail, _ := command("grep -vE '^[IW]|level.{2,3}info' /tmp/" + name + ".log | tail -n 5")
		err = fmt.Errorf("%w\n%s:\n%s", err, name, tail)
	}
	return err
}

// importImages imports the image of the release by the line of install.md, and one with this program.
func importImages() error {
	line := lines(installFile, `^ctr -n k8s.io images import `)
	if len(line) != 1 {
		return fmt.Errorf("install.md has %d lines that import the image", len(line))
	}
	if _, err := command("cd $RELEASE && " + line[0]); err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(executable)
	if err != nil {
		return err
	}
	layer, err := archive("hosts.test", program)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/hosts.test"}, "Cmd": []string{"pause"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	image, err := archive("layer.tar", layer, "config.json", config,
		"manifest.json", []byte(`[{"Config": "config.json", "RepoTags": ["localhost/load:1"], "Layers": ["layer.tar"]}]`))
	if err != nil {
		return err
	}
	ctr := exec.Command("ctr", "-n", "k8s.io", "images", "import", "-")
	ctr.Stdin = bytes.NewReader(image)
	if out, err := ctr.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", ctr, err, out)
	}
	return nil
}

// archive returns a tar with files, which are given as name and content of each.
func archive(files ...any) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for file := range slices.Chunk(files, 2) {
		content := file[1].([]byte)
		if err := w.WriteHeader(&tar.Header{Name: file[0].(string), Mode: 0o755, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// pod returns the manifest of a pod that runs this program, with a portRange if one is given.
func pod(name string, host bool, ports, args string) string {
	var sysctls string
	if ports != "" {
		sysctls = fmt.Sprintf("{name: %s, value: %q}", portRange, ports)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  hostNetwork: %t
  terminationGracePeriodSeconds: 1
  securityContext: {sysctls: [%s]}
  containers: [{name: c, image: "localhost/load:1", imagePullPolicy: Never, args: [%s]}]
`, name, host, sysctls, `"`+strings.ReplaceAll(args, " ", `", "`)+`"`)
}

// apply gives the cluster a manifest.
func apply(manifest string) error {
	kubectl := exec.Command("kubectl", "apply", "-f", "-")
	kubectl.Stdin = strings.NewReader(manifest)
	if out, err := kubectl.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s\n%s", kubectl, err, out, manifest)
	}
	return nil
}
