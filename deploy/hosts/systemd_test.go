//go:build systemd

package hosts

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/deploy/deploytest"
)

const (
	defaultFile = "/etc/default/ephemeral_port_exporter"
	dropIns     = "/etc/systemd/system/ephemeral_port_exporter.service.d"
)

// property returns a property of the service.
func property(t *testing.T, name string) string {
	t.Helper()
	return must(t, "systemctl show --property "+name+" --value ephemeral_port_exporter.service")
}

// checkService checks that the service runs as an ordinary user, that it has the sample, and that neither it nor systemd has
// logged a warning.
func checkService(t *testing.T, scrape func() (string, error), sample string) {
	t.Helper()
	if err := eventually(time.Minute, func() error {
		metrics, err := scrape()
		if err == nil && !strings.Contains(metrics, "\n"+sample) {
			name, _, _ := strings.Cut(sample, "{")
			err = fmt.Errorf("no %q in\n%s", sample, strings.Join(regexp.MustCompile("(?m)^"+name+".*").FindAllString(metrics, -1), "\n"))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if state := property(t, "ActiveState") + " " + property(t, "NRestarts"); state != "active 0" {
		t.Errorf("the service is %s", state)
	}
	if uid := must(t, "stat --format %u /proc/"+property(t, "MainPID")); uid == "0" {
		t.Error("it runs as root")
	}
	log := must(t, "journalctl --output cat _SYSTEMD_INVOCATION_ID="+property(t, "InvocationID"))
	if !strings.Contains(log, "Listening on") || strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("it logs\n%s", log)
	}
	if log := must(t, "journalctl --boot --output cat --priority warning --unit 'ephemeral_port_exporter*'"); log != "" {
		t.Errorf("systemd logs\n%s", log)
	}
}

func scrape() (string, error) { return get("/metrics") }

const success = `ephemeral_port_collect_success{netns="self"} 1`

// TestSystemd installs the package, runs the service in each way that the documents have, upgrades and removes it.
func TestSystemd(t *testing.T) {
	install := block(t, installFile, "**Debian, Ubuntu**")
	installTo := func(folder string) {
		must(t, "cd "+folder+" && export DEBIAN_FRONTEND=noninteractive && "+strings.Replace(install, "apt install", "apt-get -qq install", 1))
	}
	ok := t.Run("install", func(t *testing.T) {
		installTo(os.Getenv("RELEASE"))
		checkService(t, scrape, success)
		if got := must(t, "systemctl is-enabled ephemeral_port_exporter.service"); got != "enabled" {
			t.Errorf("the service is %s", got)
		}
	})
	if !ok {
		t.FailNow()
	}

	must(t, "ip netns add other && iptables --table nat --append POSTROUTING --source 10.0.0.0/8 --jump MASQUERADE")
	dropIn := block(t, installFile, "**Options that need")
	for name, sample := range map[string]string{
		"all-namespaces.conf": "ephemeral_port_namespaces{outcome=\"idle\"} 1\n",
		"exact.conf":          success,
		"snat.conf":           `ephemeral_port_snat_collect_success{netns="self"} 1`,
		"trace.conf":          "ephemeral_port_trace_collect_success 1",
	} {
		t.Run(name, func(t *testing.T) {
			must(t, strings.Replace(dropIn, "all-namespaces.conf", name, 1))
			checkService(t, scrape, sample)
			must(t, "rm "+dropIns+"/"+name+" && systemctl daemon-reload")
		})
	}

	t.Run("wrong flag", func(t *testing.T) { // is no reason to start it again and again
		before := deploytest.Read(t, defaultFile)
		deploytest.Write(t, "/etc/default", "ephemeral_port_exporter", `ARGS="--snat"`+"\n") // without the drop-in
		must(t, "systemctl restart ephemeral_port_exporter")
		if err := eventually(time.Minute, func() error {
			if state := property(t, "ActiveState") + " " + property(t, "ExecMainStatus") + " " + property(t, "NRestarts"); state != "failed 78 0" {
				return errors.New("the service is " + state)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if log := must(t, "journalctl --output cat _SYSTEMD_INVOCATION_ID="+property(t, "InvocationID")); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "without CAP_NET_ADMIN") {
			t.Errorf("it logs\n%s", log)
		}
		deploytest.Write(t, "/etc/default", "ephemeral_port_exporter", before)
		must(t, "systemctl reset-failed ephemeral_port_exporter && journalctl --rotate && journalctl --vacuum-time=1s")
	})

	t.Run("socket", func(t *testing.T) {
		before := deploytest.Read(t, defaultFile)
		deploytest.Write(t, "/etc/default", "ephemeral_port_exporter", `ARGS="--web.systemd-socket"`+"\n") // as the file and the unit say
		must(t, "systemctl disable --now ephemeral_port_exporter.service && systemctl enable --now ephemeral_port_exporter.socket")
		if state := property(t, "ActiveState"); state != "inactive" {
			t.Errorf("before the first scrape, the service is %s", state)
		}
		checkService(t, scrape, success)
		deploytest.Write(t, "/etc/default", "ephemeral_port_exporter", before)
		must(t, "systemctl disable --now ephemeral_port_exporter.socket && systemctl stop ephemeral_port_exporter.service && systemctl enable ephemeral_port_exporter.service")
	})

	const folder = "/etc/ephemeral_port_exporter"
	encrypted := func() (string, error) {
		return command("curl --silent --fail --cacert " + folder + "/server.crt --user prometheus:$(cat " + folder + "/password) https://localhost:10149/metrics")
	}
	t.Run("TLS", func(t *testing.T) {
		must(t, block(t, installFile, "\n## TLS and authentication\n"))
		checkService(t, encrypted, success)
		if _, err := command("curl --silent --fail --cacert " + folder + "/server.crt --user prometheus:wrong https://localhost:10149/metrics"); err == nil || !strings.Contains(err.Error(), "exit status 22") {
			t.Errorf("with a wrong password: %v", err)
		}
		if got := must(t, "stat --format %a "+folder+"/server.key"); got != "600" {
			t.Errorf("the key has mode %s", got)
		}
	})

	t.Run("upgrade", func(t *testing.T) { // keeps TLS
		pid := property(t, "MainPID")
		installTo(os.Getenv("NEWER"))
		if property(t, "MainPID") == pid {
			t.Error("the old one runs")
		}
		newer := func() (string, error) {
			metrics, err := encrypted()
			if err == nil && !strings.Contains(metrics, `version="99.0.0"`) {
				err = errors.New("not the new version")
			}
			return metrics, err
		}
		checkService(t, newer, success)
	})

	t.Run("purge", func(t *testing.T) {
		must(t, "apt-get -qq purge ephemeral-port-exporter")
		if got := must(t, "systemctl list-units --all --plain --no-legend 'ephemeral*'; systemctl list-unit-files --no-legend 'ephemeral*'; pgrep --list-full ephemeral_port_e; true"); got != "" {
			t.Errorf("systemd still has %s", got)
		}
		if got := must(t, "find / -xdev -path /proc -prune -o -path '*/checkout/*' -prune -o -name '*ephemeral[-_]port*' -print | grep -v -e ^"+folder+" -e ^"+dropIns+" -e ^/etc/sysctl.d/ -e ^/release/ -e ^/newer/; true"); got != "" {
			t.Errorf("left: %s", got)
		}
	})
}
