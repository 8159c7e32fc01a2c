//go:build linux

package main

import (
	"net/netip"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestExact has ports that are bound to one destination, and looks at another, in the exporter's own
// network namespace and in one that is mounted.
func TestExact(t *testing.T) {
	netnstest.HostRoot(t)
	const address = "127.0.0.1:10230"
	dir := t.TempDir()
	client := netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}
	binder := netnstest.Client{
		Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort("198.51.100.1:0"), Destination: netip.MustParseAddrPort("198.51.100.8:80"),
	}
	// Ports that no server of another test has had: they stay bound as long as its connections last.
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "20000 20099")
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/ip_local_port_range", "32768 60999") })
	client.Hold(t, 40)
	binder.Hold(t, 30)
	netnstest.Mount(t, filepath.Join(dir, "other"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
		client.Hold(t, 40)
		binder.Hold(t, 30)
	})

	for _, args := range [][]string{{"--exact"}, {"--exact", "--namespaces=named", "--namespaces.dir=" + dir}} {
		e := start(t, command(t, append(args, "--web.listen-address="+address)...), "http://"+address)
		_, metrics := e.get(t, "/metrics")
		for _, netns := range []string{"self", "other"}[:min(len(args), 2)] {
			if got := sample(t, metrics, `ephemeral_port_bound_ports{netns="`+netns+`"} `); got != 30 {
				t.Errorf("%v: %v ports bound in %s, want 30", args, got, netns)
			}
			capacity := sample(t, metrics, `ephemeral_port_capacity_ports{netns="`+netns+`"} `)
			for destination, ports := range map[string]float64{"198.51.100.7": 40 + 30, "198.51.100.8": 30} {
				series := `ephemeral_port_destination_utilization_ratio{destination_ip="` + destination + `",destination_port="80",netns="` + netns + `",source_ip="198.51.100.1"} `
				if got := sample(t, metrics, series); got != ports/capacity {
					t.Errorf("%v: utilization %v to %s in %s, want %v", args, got, destination, netns, ports/capacity)
				}
			}
		}
		if err := e.stop(t); err != nil {
			t.Errorf("ended with %v", err)
		}
	}
}

// TestExactCapabilities checks that the documented capabilities are enough, and that the error names
// each one that is missing.
func TestExactCapabilities(t *testing.T) {
	const bpf, perfmon = unix.CAP_BPF, unix.CAP_PERFMON
	tests := []struct {
		name         string
		capabilities []uintptr
		missing      string // or it runs
	}{
		{"both", []uintptr{bpf, perfmon}, ""},
		{"admin", []uintptr{unix.CAP_SYS_ADMIN}, ""}, // which includes both
		{"no bpf", []uintptr{perfmon}, "CAP_BPF missing"},
		{"no perfmon", []uintptr{bpf}, "CAP_PERFMON missing"},
		{"none", nil, "CAP_BPF and CAP_PERFMON missing"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10231+i)
			if tt.missing == "" {
				netnstest.HostRoot(t)
			}
			cmd := command(t, "--exact", "--web.listen-address="+address)
			unprivileged(t, cmd, tt.capabilities...)
			if tt.missing != "" {
				checkStartFails(t, cmd, "sockiter: "+tt.missing)
				return
			}
			e := start(t, cmd, "http://"+address)
			_, metrics := e.get(t, "/metrics")
			sample(t, metrics, `ephemeral_port_bound_ports{netns="self"} `)
		})
	}
}

// TestExactStartFails checks that the error names what is missing or forbidden.
func TestExactStartFails(t *testing.T) {
	netnstest.HostRoot(t)
	denyBPF := func(errno unix.Errno) func(*testing.T, *syscall.SysProcAttr) {
		return func(t *testing.T, _ *syscall.SysProcAttr) {
			filterCalls(t, []unix.SockFilter{
				{Code: loadWord, K: 0},
				{Code: jumpIf, K: unix.SYS_BPF, Jf: 1},
				{Code: ret, K: seccompErrno | uint32(errno)},
				{Code: ret, K: seccompAllow},
			})
		}
	}
	tests := []struct {
		name  string
		fault func(*testing.T, *syscall.SysProcAttr)
		want  []string
	}{
		{"no BTF", func(t *testing.T, _ *syscall.SysProcAttr) {
			if err := unix.Mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount("/sys/kernel/btf", 0) })
		}, []string{"sockiter: no description of the kernel's types (BTF), it needs CONFIG_DEBUG_INFO_BTF=y", "/sys/kernel/btf/vmlinux: no such file"}},
		{"no bpf", denyBPF(unix.ENOSYS), []string{"sockiter: load the BPF program: not supported by this kernel, it needs Linux 5.9"}},
		{"bpf forbidden", denyBPF(unix.EPERM), []string{"sockiter: load the BPF program: forbidden in spite of the capabilities, by seccomp (in systemd SystemCallFilter=", "operation not permitted"}},
		{"user namespace", func(_ *testing.T, attr *syscall.SysProcAttr) {
			attr.Cloneflags = unix.CLONE_NEWUSER
			attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		}, []string{"forbidden in spite of the capabilities", "a user namespace", "operation not permitted"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := command(t, "--exact", "--web.listen-address=127.0.0.1:10236")
			cmd.SysProcAttr = &syscall.SysProcAttr{}
			tt.fault(t, cmd.SysProcAttr)
			checkStartFails(t, cmd, tt.want...)
		})
	}
}
