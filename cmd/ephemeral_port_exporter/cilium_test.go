//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cilium/ciliumtest"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestCiliumUnread checks that the program is not calm on a node of Cilium whose source NAT it cannot see.
func TestCiliumUnread(t *testing.T) {
	netnstest.IP(t, "link add cilium_host type veth peer name cilium_net")
	t.Cleanup(func() { netnstest.IP(t, "link delete cilium_host") })
	trackFlows(t)
	for _, tt := range []struct {
		snat                bool
		page, metrics, logs string
	}{
		{false, "--snat judges the ports of source NAT. Cilium runs here", "", ""},
		{true, "The source NAT of Cilium could not be read", `ephemeral_port_snat_cilium_collect_success{netns="self"} 0`, "The source NAT of Cilium is not known"},
	} {
		args := []string{"--web.listen-address=127.0.0.1:10391"}
		if tt.snat {
			args = append(args, "--snat")
		}
		cmd := command(t, args...)
		unprivileged(t, cmd, unix.CAP_NET_ADMIN)
		e := start(t, cmd, "http://127.0.0.1:10391")
		for range 2 {
			_, metrics := e.get(t, "/metrics")
			_, page := e.get(t, "/?format=text")
			headline, _, _ := strings.Cut(page, "\n")
			if tt.snat != strings.Contains(headline, tt.page) || !strings.Contains(strings.Join(strings.Fields(page), " "), tt.page) {
				t.Errorf("--snat %v: page\n%s", tt.snat, page)
			}
			if !strings.Contains(metrics, tt.metrics) || strings.Contains(metrics, "\nephemeral_port_snat_max_utilization") {
				t.Errorf("--snat %v: metrics\n%s", tt.snat, metrics)
			}
		}
		if err := e.stop(t); err != nil { // the log is whole then
			t.Error(err)
		}
		if got := strings.Count(e.log.String(), "of Cilium is not known"); got > 1 || !strings.Contains(e.log.String(), tt.logs) {
			t.Errorf("--snat %v: %d lines of the log\n%s", tt.snat, got, e.log)
		}
	}
}

// ciliumMaps are the maps of a node of Cilium, without an entry, with the sizes of their keys and values.
var ciliumMaps = map[string][2]uint32{
	"cilium_snat_v4_external": {14, 40}, "cilium_ct4_global": {14, 56}, "cilium_ct_any4_global": {14, 56}, "cilium_lxc": {20, 48},
}

// pinCiliumMap pins a map in place of the one that has its name.
func pinCiliumMap(t *testing.T, mount, name string, key, value uint32) {
	t.Helper()
	path := filepath.Join(ciliumtest.Pins(t, mount), name)
	_ = os.Remove(path)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: key, ValueSize: value, MaxEntries: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
}

// TestCiliumNotAsked checks that there is nothing to be told of Cilium's source NAT where the user says that it has none.
func TestCiliumNotAsked(t *testing.T) {
	netnstest.IP(t, "link add cilium_host type veth peer name cilium_net")
	t.Cleanup(func() { netnstest.IP(t, "link delete cilium_host") })
	cmd := command(t, "--snat", "--path.bpffs=", "--web.listen-address=127.0.0.1:10397")
	unprivileged(t, cmd, unix.CAP_NET_ADMIN)
	e := start(t, cmd, "http://127.0.0.1:10397")
	_, metrics := e.get(t, "/metrics")
	_, page := e.get(t, "/?format=text")
	if strings.Contains(metrics, "\nephemeral_port_snat_cilium") || strings.Contains(page, "Cilium") || strings.Contains(e.log.String(), "Cilium") {
		t.Errorf("page\n%s\nlog\n%s", page, e.log)
	}
}

// TestCiliumPrivileges finds out what the program needs to read Cilium's maps, and checks what it says without.
func TestCiliumPrivileges(t *testing.T) {
	mount := ciliumtest.MountBPF(t)
	for name, size := range ciliumMaps {
		pinCiliumMap(t, mount, name, size[0], size[1])
	}
	netnstest.IP(t, "link add cilium_host type veth peer name cilium_net")
	t.Cleanup(func() { netnstest.IP(t, "link delete cilium_host") })
	var major, minor int
	if _, err := fmt.Sscanf(read(t, "/proc/sys/kernel/osrelease"), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	alone := 1.0 // CAP_DAC_READ_SEARCH without CAP_BPF
	if (major < 5 || major == 5 && minor < 19) && read(t, "/proc/sys/kernel/unprivileged_bpf_disabled") != "0\n" {
		alone = 0
	}
	for _, tt := range []struct {
		name         string
		capabilities []uintptr
		root         bool
		success      float64
	}{
		{"none", []uintptr{unix.CAP_NET_ADMIN}, false, 0},
		{"CAP_BPF alone", []uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF}, false, 0},
		{"CAP_DAC_READ_SEARCH", []uintptr{unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH}, false, alone},
		{"both", []uintptr{unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH, unix.CAP_BPF}, false, 1},
		{"root", nil, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := command(t, "--snat", "--path.bpffs="+mount, "--web.listen-address=127.0.0.1:10393")
			if !tt.root {
				unprivileged(t, cmd, tt.capabilities...)
			}
			e := start(t, cmd, "http://127.0.0.1:10393")
			_, metrics := e.get(t, "/metrics")
			if got := sample(t, metrics, `ephemeral_port_snat_cilium_collect_success{netns="self"} `); got != tt.success {
				t.Errorf("success %v, want %v; log:\n%s", got, tt.success, e.log)
			}
			if err := e.stop(t); err != nil { // the log is whole then
				t.Error(err)
			}
			if said := strings.Contains(e.log.String(), "need the user root, or CAP_DAC_READ_SEARCH"); said == (tt.success == 1) {
				t.Errorf("log:\n%s", e.log)
			}
		})
	}
}

// read returns the content of a file.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCiliumFaults changes the maps of a node under a running program. What it cannot read never reads as no flows.
func TestCiliumFaults(t *testing.T) {
	mount := ciliumtest.MountBPF(t)
	netnstest.IP(t, "link add cilium_host type veth peer name cilium_net")
	t.Cleanup(func() { netnstest.IP(t, "link delete cilium_host") })
	e := start(t, command(t, "--snat", "--path.bpffs="+mount, "--web.listen-address=127.0.0.1:10394"), "http://127.0.0.1:10394")
	pin := func() {
		for name, size := range ciliumMaps {
			pinCiliumMap(t, mount, name, size[0], size[1])
		}
	}
	remove := func(name string) func() {
		return func() {
			if err := os.Remove(filepath.Join(mount, "tc/globals", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, step := range []struct {
		name    string
		change  func()
		success float64
		flows   bool // snat_max_utilization_ratio is known: 0
		log     string
	}{
		{"no maps", func() {}, 0, false, "must be the BPF file system of the host"},
		{"maps", pin, 1, true, ""},
		{"another version", func() { pinCiliumMap(t, mount, "cilium_snat_v4_external", 14, 48) }, 0, false, "unknown layout: "},
		{"as before", pin, 1, true, ""},
		{"no connections", remove("cilium_ct_any4_global"), 0, false, "cilium_ct_any4_global"},
		{"an agent that starts", pin, 1, true, ""},
		{"no source NAT", remove("cilium_snat_v4_external"), 1, true, ""},
	} {
		before := len(e.log.String())
		step.change()
		_, metrics := e.get(t, "/metrics")
		if got := sample(t, metrics, `ephemeral_port_snat_cilium_collect_success{netns="self"} `); got != step.success {
			t.Errorf("%s: success %v, want %v", step.name, got, step.success)
		}
		_, _ = e.get(t, "/metrics")
		for deadline := time.Now().Add(5 * time.Second); !strings.Contains(e.log.String()[before:], step.log) && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		log := e.log.String()[before:]
		if got := strings.Count(log, "of Cilium is not known"); got > 1 || (got == 1) != (step.log != "") || !strings.Contains(log, step.log) {
			t.Errorf("%s: log\n%s\nwant %q", step.name, log, step.log)
		}
		if strings.Contains(metrics, "\nephemeral_port_snat_max_utilization_ratio") != step.flows {
			t.Errorf("%s: the highest utilization is known: %v", step.name, !step.flows)
		}
		_, page := e.get(t, "/?format=text")
		if headline, _, _ := strings.Cut(page, "\n"); strings.Contains(headline, "The source NAT of Cilium could not be read") == step.flows {
			t.Errorf("%s: %s", step.name, headline)
		}
	}
}

// TestCiliumForged has another user make what looks like a directory of Cilium, in a BPF file system where anyone may. Where Cilium does not run,
// that is nothing to be told of. Where it does, and its maps are elsewhere, that is no sign that it has no source NAT.
func TestCiliumForged(t *testing.T) {
	const nobody = 65534
	mount := ciliumtest.MountBPF(t)
	pins := ciliumtest.Pins(t, mount)
	for name, target := range map[string]string{"cilium_lxc": "/etc/passwd", "cilium_snat_v4_external": "cilium_snat_v4_external"} {
		if err := os.Symlink(target, filepath.Join(pins, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{pins, filepath.Dir(pins)} {
		if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	e := start(t, command(t, "--snat", "--path.bpffs="+mount, "--web.listen-address=127.0.0.1:10396"), "http://127.0.0.1:10396")
	if _, metrics := e.get(t, "/metrics"); strings.Contains(metrics, "\nephemeral_port_snat_cilium") || strings.Contains(e.log.String(), "of Cilium") {
		t.Errorf("without Cilium: log\n%s", e.log)
	}
	if err := os.Remove(filepath.Join(pins, "cilium_snat_v4_external")); err != nil {
		t.Fatal(err)
	}
	netnstest.IP(t, "link add cilium_host type veth peer name cilium_net")
	t.Cleanup(func() { netnstest.IP(t, "link delete cilium_host") })
	_, metrics := e.get(t, "/metrics")
	if err := e.stop(t); err != nil { // the log is whole then
		t.Error(err)
	}
	if got := sample(t, metrics, `ephemeral_port_snat_cilium_collect_success{netns="self"} `); got != 0 || !strings.Contains(e.log.String(), "belongs to user 65534") {
		t.Errorf("with Cilium: success %v; log\n%s", got, e.log)
	}
}
