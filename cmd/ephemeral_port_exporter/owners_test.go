//go:build linux

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// ownedConnections opens 20 connections to a destination in a control group of their own, and some in one that is gone: a search looks
// at all others for that, of which there are many. It returns the mount point of cgroup2 and the start of the series for the 20. Users
// who may not make control groups get the usual mount point and "".
func ownedConnections(t *testing.T, destination string) (mount, series string) {
	t.Helper()
	if !netnstest.IsHostRoot() {
		return "/sys/fs/cgroup", ""
	}
	mount = netnstest.Cgroups(t)
	path := fmt.Sprint("/owned-", os.Getpid())
	netnstest.NewCgroup(t, mount+path)
	client := netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
	netnstest.HoldInCgroup(t, mount+path, netnstest.Holding{Client: client, Count: 20})
	holdInGone(t, mount+path, netnstest.Holding{Client: client, Count: 10})
	for i := range 300 {
		netnstest.NewCgroup(t, fmt.Sprint(mount, path, "/", i))
	}
	return mount, `ephemeral_port_destination_owner_ports{cgroup="` + path + `",`
}

// holdInGone opens connections in a control group that is then removed from a directory. It returns the number of that.
func holdInGone(t *testing.T, dir string, holding netnstest.Holding) (id uint64) {
	t.Helper()
	gone := dir + "/gone"
	id = netnstest.NewCgroup(t, gone)
	netnstest.MoveToCgroup(t, dir, netnstest.HoldInCgroup(t, gone, holding))
	netnstest.RemoveCgroup(t, gone)
	return id
}

// TestOwnersForged has a pod, and a user who names control groups inside of his own like those of the pod. Neither the
// owners of ports nor the network namespace of the user have the names of the pod. The page has the name that kubelet gave its
// directory of logs; metrics do not.
func TestOwnersForged(t *testing.T) {
	mount := netnstest.Cgroups(t)
	const (
		pod       = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
		container = "9b1c7a0de4f35a6b8c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b"
		address   = "127.0.0.1:10197"
	)
	base := fmt.Sprintf("/forged_%d.slice", os.Getpid())
	dir := openTempDir(t)
	hold := func(netns, destination, path string) {
		group := mount + base
		for part := range strings.SplitSeq(path, "/") {
			if _, err := os.Stat(group); err != nil {
				netnstest.NewCgroup(t, group)
			}
			group += "/" + part
		}
		netnstest.NewCgroup(t, group)
		netnstest.Mount(t, filepath.Join(dir, netns), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 41000")
			netnstest.HoldInCgroup(t, group, netnstest.Holding{Client: netnstest.Client{Destination: netip.MustParseAddrPort(destination)}, Count: 40})
		})
	}
	forged := "user@1000.service/kubepods/pod" + pod + "/" + container
	hold("victim", "192.0.2.1:443", "kubepods-pod"+strings.ReplaceAll(pod, "-", "_")+".slice/cri-containerd-"+container+".scope")
	hold("user", "192.0.2.2:443", forged)
	logs := t.TempDir()
	if err := os.Mkdir(filepath.Join(logs, "shop_cart-7d4b9c6f5-x2k8p_"+pod), 0o755); err != nil {
		t.Fatal(err)
	}
	e := start(t, command(t, "--path.cgroup="+mount, "--namespaces=all", "--namespaces.dir="+dir, "--path.pod-logs="+logs, "--collect.timeout=30s", "--web.listen-address="+address), "http://"+address)
	_, metrics := e.get(t, "/metrics")
	for _, want := range []string{
		`destination_owner_ports{cgroup="` + base + "/" + forged + `",container_id="",.*netns="user",pod_uid="",.* 40`,
		`destination_owner_ports{.*container_id="` + container + `",.*netns="victim",pod_uid="` + pod + `",.* 40`,
		`netns_info{.*container_id="",.*netns="user",pod_uid=""} 1`,
		`netns_info{.*container_id="` + container + `",.*netns="victim",pod_uid="` + pod + `"} 1`,
	} {
		if !regexp.MustCompile("\nephemeral_port_" + want + "\n").MatchString(metrics) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(metrics, "cart-7d4b9c6f5-x2k8p") {
		t.Error("the metrics have the name of the pod")
	}
	_, page := e.get(t, "/?destination=192.0.2.1:443&format=text")
	if !strings.Contains(page, "pod shop/cart-7d4b9c6f5-x2k8p container 9b1c7a0de4f3 (40)") {
		t.Errorf("no name of the pod:\n%s", page)
	}
	if _, page := e.get(t, "/?destination=192.0.2.2:443&format=text"); strings.Contains(page, "cart-7d4b9c6f5-x2k8p") {
		t.Errorf("the name of the pod beside the ports of the user:\n%s", page)
	}
	_, document := e.get(t, "/?format=json")
	if n := strings.Count(document, `"pod": "shop/cart-7d4b9c6f5-x2k8p"`); n != 2 { // of its destination and its namespace
		t.Errorf("the name of the pod is there %d times: %s", n, document)
	}
	if t.Failed() {
		t.Log(metrics)
	}
}

// TestOwnersFlood has a pod, and a user with 10,000 control groups, whose connections are of one that is gone. That hides the owner of
// no other connections.
func TestOwnersFlood(t *testing.T) {
	mount := netnstest.Cgroups(t)
	base := fmt.Sprintf("/flood_%d.slice", os.Getpid())
	class := base + "/kubepods-burstable.slice"
	pod := class + "/kubepods-burstable-pod3f8e1c2a_5b6d_4e7f_8a9b_0c1d2e3f4a5b.slice"
	container := pod + "/cri-containerd-9b1c7a0de4f35a6b8c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b.scope"
	user := base + "/user@1000.service"
	for _, path := range []string{base, user, class, pod, container} {
		netnstest.NewCgroup(t, mount+path)
	}
	for i := range 10_000 {
		dir := fmt.Sprintf("%s%s/%d", mount, user, i)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
	}
	netnstest.HoldInCgroup(t, mount+container, netnstest.Holding{Client: netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.5:443")}, Count: 20})
	id := holdInGone(t, mount+user, netnstest.Holding{Client: netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.6:443")}, Count: 20})

	const address = "127.0.0.1:10196"
	cmd := command(t, "--path.cgroup="+mount, "--destination.min-ports=10", "--web.listen-address="+address)
	unprivileged(t, cmd)
	e := start(t, cmd, "http://"+address)
	for range 3 {
		_, metrics := e.get(t, "/metrics")
		for _, want := range []string{
			`{cgroup="` + container + `",container_id="9b1c7a0de4f35a6b8c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b",destination_ip="192.0.2.5",destination_port="443",netns="self",pod_uid="3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b",`,
			fmt.Sprintf(`{cgroup="cgroup-%d",container_id="",destination_ip="192.0.2.6",`, id),
		} {
			if !strings.Contains(metrics, "ephemeral_port_destination_owner_ports"+want) {
				t.Errorf("no owner %s", want)
			}
		}
	}
}

// TestOwnersHAProxy runs HAProxy in a control group of its own. An exporter without privileges in
// another one tells whose the connections are.
func TestOwnersHAProxy(t *testing.T) {
	mount := netnstest.Cgroups(t)
	program, err := exec.LookPath("haproxy")
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("no haproxy: install the package haproxy")
		}
		t.Fatal(err)
	}
	base := fmt.Sprint("/owners-", os.Getpid())
	service := base + "/haproxy.service"
	netnstest.NewCgroup(t, mount+base)
	netnstest.NewCgroup(t, mount+service)

	const frontend, backend, address = "127.0.0.1:7200", "127.0.0.2:7201", "127.0.0.1:10198"
	listener, err := net.Listen("tcp", backend) // the kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(config, []byte(`defaults
  mode tcp
  timeout connect 60s
  timeout client 60s
  timeout server 60s
listen proxy
  bind `+frontend+`
  server backend `+backend+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	attr, dir, err := netnstest.InCgroup(mount + service)
	if err != nil {
		t.Fatal(err)
	}
	haproxy := exec.Command(program, "-db", "-f", config)
	haproxy.SysProcAttr, haproxy.Stderr = attr, os.Stderr
	err = haproxy.Start()
	dir.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = haproxy.Process.Kill()
		_ = haproxy.Wait()
	})
	for n, deadline := 0, time.Now().Add(time.Minute); n < 15; {
		client, err := net.Dial("tcp", frontend)
		if err == nil {
			defer client.Close()
			n++
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		} else {
			time.Sleep(10 * time.Millisecond)
		}
	}

	cmd := command(t, "--path.cgroup="+mount, "--destination.min-ports=10", "--web.listen-address="+address)
	unprivileged(t, cmd)
	e := start(t, cmd, "http://"+address)
	// HAProxy may not have connected yet.
	want := "\nephemeral_port_destination_owner_ports{cgroup=\"" + service + `",container_id="",destination_ip="127.0.0.2",destination_port="7201",netns="self",pod_uid="",source_ip="127.0.0.1"} 15` + "\n"
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, metrics := e.get(t, "/metrics")
		if strings.Contains(metrics, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s in\n%s", want, metrics)
		}
	}
}
