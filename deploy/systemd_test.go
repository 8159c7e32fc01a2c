//go:build linux

package deploy

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

// checkFlags reports flags in a text that the exporter does not have.
func checkFlags(t *testing.T, path, text string) {
	t.Helper()
	help := deploytest.Run(t, netnstest.ProgramPath(exporterProgram), "--help")
	for _, flag := range regexp.MustCompile(`--[a-z][a-z.-]*[a-z]`).FindAllString(text, -1) {
		name := strings.TrimPrefix(flag, "--")
		if !regexp.MustCompile(`--(\[no-\])?` + regexp.QuoteMeta(name) + `[ =]`).MatchString(help) {
			t.Errorf("%s: the exporter has no flag %s", path, flag)
		}
	}
}

const systemdService = "systemd/ephemeral_port_exporter.service"

// systemdVariants returns the service alone, with each drop-in, and with all. The drop-ins are appended
// to the service, which has the same effect.
func systemdVariants(t *testing.T) map[string]string {
	t.Helper()
	service := deploytest.Read(t, systemdService)
	namespaces, failures := deploytest.Read(t, "systemd/all-namespaces.conf"), deploytest.Read(t, "systemd/trace.conf")
	exact, tls, snat := deploytest.Read(t, "systemd/exact.conf"), deploytest.Read(t, "systemd/tls.conf"), deploytest.Read(t, "systemd/snat.conf")
	return map[string]string{
		"service": service, "all-namespaces": service + namespaces, "trace": service + failures, "exact": service + exact, "tls": service + tls,
		"snat": service + snat, "all": service + namespaces + failures + exact + tls + snat,
	}
}

// TestSystemdUnits checks that systemd accepts the units, and that their flags exist.
func TestSystemdUnits(t *testing.T) {
	analyze := deploytest.Tool(t, "systemd-analyze", "systemd")
	binary := netnstest.ProgramPath(exporterProgram)
	for variant, service := range systemdVariants(t) {
		dir := t.TempDir()
		service = strings.ReplaceAll(service, "/usr/local/bin/ephemeral_port_exporter", binary)
		out := deploytest.Run(t, analyze, "verify", "--man=no",
			deploytest.Write(t, dir, "ephemeral_port_exporter.service", service),
			deploytest.Write(t, dir, "ephemeral_port_exporter.socket", deploytest.Read(t, "systemd/ephemeral_port_exporter.socket")))
		if out != "" {
			t.Errorf("%s: systemd-analyze verify: %s", variant, out)
		}
	}
	for _, name := range []string{"ephemeral_port_exporter.service", "ephemeral_port_exporter.socket", "ephemeral_port_exporter.default", "all-namespaces.conf", "trace.conf", "exact.conf", "tls.conf", "snat.conf"} {
		checkFlags(t, name, deploytest.Read(t, filepath.Join("systemd", name)))
	}
}

// TestSystemdSecurity checks the exposure level: at most 1.5 of 10, of which the network takes 0.5. With
// capabilities, it is at most 3.
func TestSystemdSecurity(t *testing.T) {
	analyze := deploytest.Tool(t, "systemd-analyze", "systemd")
	most := map[string]float64{"service": 1.5, "all-namespaces": 3, "trace": 3, "exact": 3, "tls": 1.5, "snat": 3, "all": 3}
	for variant, service := range systemdVariants(t) {
		path := deploytest.Write(t, t.TempDir(), "ephemeral_port_exporter.service", service)
		out := deploytest.Run(t, analyze, "security", "--offline=true", "--no-pager", path)
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("%s: no exposure level in\n%s", variant, out)
		}
		if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > most[variant] {
			t.Errorf("%s: exposure level %s, want at most %v:\n%s", variant, m[1], most[variant], out)
		}
		if strings.Contains(service, "\nProcSubset=") {
			t.Errorf("%s: ProcSubset= hides the sysctls", variant)
		}
	}
}

// TestSystemdCapabilities checks that the drop-ins grant exactly the capabilities in security.md.
func TestSystemdCapabilities(t *testing.T) {
	for name, want := range map[string]string{
		"ephemeral_port_exporter.service": "",
		"all-namespaces.conf":             "CAP_SYS_ADMIN CAP_SYS_PTRACE",
		"trace.conf":                      "CAP_BPF CAP_PERFMON",
		"exact.conf":                      "CAP_BPF CAP_PERFMON",
		"snat.conf":                       "CAP_NET_ADMIN",
	} {
		unit := deploytest.Read(t, filepath.Join("systemd", name))
		for _, setting := range []string{"CapabilityBoundingSet", "AmbientCapabilities"} {
			if got := regexp.MustCompile(`(?m)^`+setting+`=.*$`).FindAllString(unit, -1); len(got) != 1 || got[0] != setting+"="+want {
				t.Errorf("%s: %q, want %s=%s", name, got, setting, want)
			}
		}
	}
}

// TestSystemdMemory checks that the service has a memory limit.
func TestSystemdMemory(t *testing.T) {
	if !strings.Contains(deploytest.Read(t, systemdService), "\nMemoryMax=256M\n") {
		t.Error("the service has no memory limit")
	}
}

// TestSystemdRestart checks that the service is not restarted with a flag that is wrong.
func TestSystemdRestart(t *testing.T) {
	cmd := exec.Command(netnstest.ProgramPath(exporterProgram), "--namespaces=wrong")
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	unit := deploytest.Read(t, systemdService)
	want := "\nRestartPreventExitStatus=" + strconv.Itoa(cmd.ProcessState.ExitCode()) + "\n"
	if !strings.Contains(unit, want) || !strings.Contains(unit, "\nRestart=on-failure\n") {
		t.Errorf("no %q in\n%s", want, unit)
	}
}

// TestSystemdPort checks that the port of the socket unit is the default port.
func TestSystemdPort(t *testing.T) {
	if !strings.Contains(deploytest.Read(t, "systemd/ephemeral_port_exporter.socket"), "\nListenStream="+defaultPort(t)+"\n") {
		t.Error("the socket unit has another port than the exporter")
	}
}

// defaultPort returns the default port of the exporter.
func defaultPort(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`--web\.listen-address=:(\d+)`).FindStringSubmatch(deploytest.Run(t, netnstest.ProgramPath(exporterProgram), "--help"))
	if m == nil {
		t.Fatal("no default listen address in --help")
	}
	return m[1]
}

// TestSystemdCalls checks that the units allow the system calls and address families of the seccomp
// profile, which is measured, and no others.
func TestSystemdCalls(t *testing.T) {
	var profile struct {
		Syscalls []struct {
			Comment  string
			Names    []string
			Args     []struct{ Index, Value int }
			Includes struct{ Caps []string }
		}
	}
	if err := json.Unmarshal([]byte(deploytest.Read(t, "seccomp/ephemeral_port_exporter.json")), &profile); err != nil {
		t.Fatal(err)
	}
	families := map[int]string{unix.AF_UNIX: "AF_UNIX", unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6", unix.AF_NETLINK: "AF_NETLINK"}
	for unit, flag := range map[string]string{
		"ephemeral_port_exporter.service": "", "all-namespaces.conf": "--namespaces", "exact.conf": "--exact", "trace.conf": "--trace",
		"snat.conf": "--snat",
	} {
		want, known := map[string][]string{}, map[string]bool{}
		for _, rule := range profile.Syscalls {
			always := len(rule.Includes.Caps) == 0
			if always && rule.Names[0] == "socket" && flag != "" {
				known[families[rule.Args[0].Value]] = true // the service has it
			}
			if always != (flag == "") || !strings.Contains(rule.Comment, flag) || strings.HasPrefix(rule.Comment, "What runc may call") {
				continue
			}
			for _, name := range rule.Names {
				if name == "socket" && !known[families[rule.Args[0].Value]] {
					known[families[rule.Args[0].Value]] = true
					want["RestrictAddressFamilies"] = append(want["RestrictAddressFamilies"], families[rule.Args[0].Value])
				}
				if name != "socket" || !slices.Contains(want["SystemCallFilter"], name) && always {
					want["SystemCallFilter"] = append(want["SystemCallFilter"], name)
				}
			}
		}
		text := deploytest.Read(t, filepath.Join("systemd", unit))
		for _, setting := range []string{"SystemCallFilter", "RestrictAddressFamilies"} {
			var got []string
			for _, m := range regexp.MustCompile(`(?m)^`+setting+`=(.*)$`).FindAllStringSubmatch(text, -1) {
				got = append(got, strings.Fields(m[1])...)
			}
			slices.Sort(got)
			slices.Sort(want[setting])
			if diff := cmp.Diff(want[setting], got); diff != "" {
				t.Errorf("%s: %s (-profile +unit):\n%s", unit, setting, diff)
			}
		}
	}
}
