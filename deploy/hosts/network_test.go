//go:build kubernetes

package hosts

import (
	"encoding/json"
	"maps"
	"os"
)

// The network of the pods, by .ci/kubernetes: the plugin bridge with kube-proxy, or Cilium instead of both.
var network = os.Getenv("NETWORK")

const (
	bridge = "bridge"
	cilium = "cilium"
)

const bridgeConfiguration = `{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// startNetwork starts the network of the pods.
func startNetwork() error {
	if network == cilium {
		return startCilium()
	}
	if err := write("cni/net.d/bridge.conflist", bridgeConfiguration); err != nil {
		return err
	}
	return startProxy("nftables")
}

// startProxy starts kube-proxy, after it has taken the rules of another mode away. It changes no settings of the machine.
func startProxy(mode string) error {
	if proxy := running["kube-proxy"]; proxy != nil {
		if err := proxy.Process.Kill(); err != nil {
			return err
		}
		_ = proxy.Wait() // killed
		if _, err := command("kube-proxy --cleanup"); err != nil {
			return err
		}
	}
	return start("kube-proxy", "--kubeconfig="+kubeconfig("system:kube-proxy"), "--hostname-override=node1", "--proxy-mode="+mode, "--cluster-cidr=10.244.0.0/16",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
}

// ciliumNodePorts leave 535 ports to Cilium's source NAT.
const ciliumNodePorts = "30000-65000"

// startCilium starts Cilium's agent, with the settings of its chart, as far as one node without its other programs can have them. The agent
// reserves the node ports, so that the node's programs need others.
func startCilium() error {
	for _, line := range []string{
		"mount -t bpf bpf /sys/fs/bpf",
		"sysctl -qw '" + portRange + "=1024 65535'",
		"mkdir -p /var/lib/cilium && cp -r $CILIUM/bpf /var/lib/cilium && cp $CILIUM/cilium-cni /usr/lib/cni",
		"kubectl apply -R -f $CILIUM/crds",
	} {
		if _, err := command(line); err != nil {
			return err
		}
	}
	rendered, err := command("helm template cilium $CILIUM/cilium --namespace kube-system --show-only templates/cilium-configmap.yaml " +
		"--set ipam.mode=kubernetes,kubeProxyReplacement=true,bpf.masquerade=true,routingMode=native,ipv4NativeRoutingCIDR=10.244.0.0/16,l7Proxy=false,hubble.enabled=false,envoy.enabled=false | " +
		"kubectl create --dry-run=client --output json -f -")
	if err != nil {
		return err
	}
	var config struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(rendered), &config); err != nil {
		return err
	}
	maps.Copy(config.Data, map[string]string{
		"devices": "eth0", "node-port-range": "30000,65000", "auto-direct-node-routes": "true", "enable-ipv6": "false", "enable-ipv6-masquerade": "false",
		"enable-health-checking": "false", "enable-endpoint-health-checking": "false", "enable-health-check-nodeport": "false",
		"procfs": "/proc", "write-cni-conf-when-ready": "/etc/cni/net.d/05-cilium.conflist", // as in a container, these would be below /host
	})
	for name, value := range config.Data {
		if err := write("cilium/"+name, value); err != nil {
			return err
		}
	}
	os.Setenv("K8S_NODE_NAME", "node1")
	if err := start("cilium-agent", "--config-dir=/etc/cilium", "--k8s-kubeconfig-path="+kubeconfig("admin")); err != nil {
		return err
	}
	return ready("test -e /etc/cni/net.d/05-cilium.conflist")
}
