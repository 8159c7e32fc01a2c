//go:build linux

package deploy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

// startExporter runs the real exporter on its default port.
func startExporter(t *testing.T, flags ...string) *exec.Cmd {
	t.Helper()
	return background(t, netnstest.ProgramPath(exporterProgram), append(flags, "--web.listen-address=127.0.0.1:10149")...)
}

// startPrometheus runs Prometheus on its default port with the shipped configuration. It scrapes once
// a second, and the waiting times of the rules are shortened, and so are the minutes that they look back. replace has pairs of strings to replace in the
// configuration.
func startPrometheus(t *testing.T, replace ...string) {
	t.Helper()
	program := deploytest.Tool(t, "prometheus", "prometheus")
	dir := t.TempDir()
	shorter := strings.NewReplacer("[1m]", "[5s]", "[10m]", "[5s]", "offset 10m", "offset 5s")
	deploytest.Write(t, dir, "rules.yml", shorter.Replace(shorten(t, deploytest.Read(t, "prometheus/rules.yml"))))
	replace = append(replace, "_interval: 15s", "_interval: 1s")
	config := strings.NewReplacer(replace...).Replace(deploytest.Read(t, "prometheus/prometheus.yml"))
	background(t, program,
		"--config.file="+deploytest.Write(t, dir, "prometheus.yml", config), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:9090")
}

// query evaluates expr in Prometheus and returns the number of series in the result.
func query(expr string) (series int, err error) {
	var answer struct {
		Data struct{ Result []any }
	}
	err = getJSON("http://127.0.0.1:9090/api/v1/query?query="+url.QueryEscape(expr), &answer)
	return len(answer.Data.Result), err
}

// waitFor waits until a query returns a series.
func waitFor(t *testing.T, expr string) {
	t.Helper()
	eventually(t, expr, func() error {
		n, err := query(expr)
		if err == nil && n == 0 {
			err = fmt.Errorf("no data")
		}
		return err
	})
}

// smallRange leaves 200 ports for the rest of the test, none of which a server of another test has had.
func smallRange(t *testing.T) {
	t.Helper()
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "20000 20199")
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/ip_local_port_range", "32768 60999") })
}

// connect opens n connections, or fewer if the ports are exhausted.
func connect(t *testing.T, destination string, n int) []int {
	t.Helper()
	c := netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
	var fds []int
	for len(fds) < n {
		fd, err := c.Connect()
		if err != nil {
			if !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatal(err)
			}
			break
		}
		fds = append(fds, fd)
	}
	return fds
}

// disconnect closes the connections of connect.
func disconnect(fds []int) {
	for _, fd := range fds {
		netnstest.CloseRepaired(fd)
	}
}

// TestEndToEnd exhausts the ports of one destination. It runs the real exporter, Prometheus and
// Alertmanager, and checks the notifications.
func TestEndToEnd(t *testing.T) {
	smallRange(t)
	w := startAlertmanager(t)
	exporter := startExporter(t, "--namespaces=named")
	const half, full = "192.0.2.2:443", "192.0.2.1:443"
	kept := connect(t, half, 99)
	defer disconnect(kept[1:])
	startPrometheus(t)
	waitFor(t, `ephemeral_port_destination_ports{destination_ip="192.0.2.2"} == 99`)
	// A state that is nearly always 0 has a series while it is not, and its sample does not outlive it.
	const finWait1 = `ephemeral_port_destination_ports{destination_ip="192.0.2.2", state="fin_wait1"}`
	const repairOff = -1 // TCP_REPAIR_OFF_NO_WP
	if err := errors.Join(unix.SetsockoptInt(kept[0], unix.IPPROTO_TCP, unix.TCP_REPAIR, repairOff), unix.Shutdown(kept[0], unix.SHUT_WR)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, finWait1+` == 1`)
	waitFor(t, `sum without (state) (ephemeral_port_destination_ports{destination_ip="192.0.2.2"}) == 99`)
	disconnect(kept[:1])
	waitFor(t, `absent(`+finWait1+`)`)
	waitFor(t, `sum without (state) (ephemeral_port_destination_ports{destination_ip="192.0.2.2"}) == 98`)

	held := connect(t, full, 70)
	waitFor(t, `destination:ephemeral_port_utilization:avg10m{destination_ip="192.0.2.1"}`)
	held = append(held, connect(t, full, 40)...)
	w.wait(t, "chat: EphemeralPortsHalfUsed 192.0.2.1 firing")
	held = append(held, connect(t, full, 1000)...)
	if len(held) < 198 {
		t.Errorf("connect() failed after %d ports, want 200", len(held))
	}
	w.wait(t, "pager: EphemeralPortsExhausted 192.0.2.1 firing")
	eventually(t, "the exhausted alert mutes the others", func() error {
		alerts := firing(t)
		muted := alerts["EphemeralPortsHalfUsed 192.0.2.1"] && alerts["EphemeralPortsNearlyExhausted 192.0.2.1"]
		if !muted || alerts["EphemeralPortsExhausted 192.0.2.1"] {
			return fmt.Errorf("muted: %v", alerts)
		}
		return nil
	})
	t.Run("dashboards", func(t *testing.T) { testDashboardQueries(t, false) })

	disconnect(held)
	w.wait(t, "pager: EphemeralPortsExhausted 192.0.2.1 resolved")

	if err := exporter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.wait(t, "pager: EphemeralPortExporterDown  firing")

	for _, n := range w.got() {
		if n.Labels["destination_ip"] == "192.0.2.2" {
			t.Errorf("an alert about the destination with half of the traffic: %v", n)
		}
	}
}

// TestEndToEndTrace continues to connect when no port is left. It checks that
// EphemeralPortsConnectFailing is sent and mutes the other alerts of the destination.
func TestEndToEndTrace(t *testing.T) {
	netnstest.LockTraces(t)
	smallRange(t)
	w := startAlertmanager(t)
	startExporter(t, "--trace")
	startPrometheus(t)
	const full = "192.0.2.3:443"
	waitFor(t, `ephemeral_port_connect_failures_unattributed_total`)

	defer disconnect(connect(t, full, 1000))
	w.wait(t, "pager: EphemeralPortsConnectFailing 192.0.2.3 firing")
	eventually(t, "failing connects mute the others", func() error {
		alerts := firing(t)
		muted := alerts["EphemeralPortsExhausted 192.0.2.3"] && alerts["EphemeralPortsNearlyExhausted 192.0.2.3"]
		if failing, ok := alerts["EphemeralPortsConnectFailing 192.0.2.3"]; !ok || failing || !muted {
			return fmt.Errorf("muted: %v", alerts)
		}
		return nil
	})
	const failures = `ephemeral_port_connect_failures_total{netns="self", source_ip="198.51.100.1", destination_ip="192.0.2.3", destination_port="443"}`
	waitFor(t, failures+" == 1")
	if n := len(connect(t, full, 1)); n != 0 {
		t.Error("a port was left")
	}
	waitFor(t, failures+" == 2")
	t.Run("dashboards", func(t *testing.T) { testDashboardQueries(t, true) })
}

// TestEndToEndLinks follows the links of the alerts to an exporter with an IPv6 address, in a job with special
// characters. status_url must lead to the destination of the alert, and runbook_url to its chapter.
func TestEndToEndLinks(t *testing.T) {
	smallRange(t)
	startExporter(t, "--web.listen-address=[::1]:10149")
	defer disconnect(connect(t, "192.0.2.4:443", 1000))
	defer disconnect(connect(t, "[2001:db8::7]:443", 1000))
	startPrometheus(t, "job_name: ephemeral_port\n", `job_name: 'ephemeral_port "\ü" & co'`+"\n", `"localhost:10149"`, `"[::1]:10149", "[::1]:1"`)

	follow := func(instance, alert, ip string) error {
		var answer struct {
			Data struct {
				Alerts []struct{ Labels, Annotations map[string]string }
			}
		}
		if err := getJSON("http://127.0.0.1:9090/api/v1/alerts", &answer); err != nil {
			return err
		}
		for _, a := range answer.Data.Alerts {
			if a.Labels["alertname"] != alert || a.Labels["instance"] != instance || a.Labels["destination_ip"] != ip {
				continue
			}
			runbook, err := getText(a.Annotations["runbook_url"])
			_, chapter, _ := strings.Cut(a.Annotations["runbook_url"], "#")
			if err == nil && !strings.Contains(runbook, fmt.Sprintf("id=%q", chapter)) {
				err = errors.New("no such chapter")
			}
			if err != nil {
				// That of an exporter that is down leads to another one, once Prometheus has scraped that.
				return fmt.Errorf("runbook_url %s: %w", a.Annotations["runbook_url"], err)
			}
			if ip == "" {
				return nil
			}
			var page struct {
				Destinations []struct {
					IP string `json:"destination_ip"`
				}
			}
			if err := getJSON(a.Annotations["status_url"]+"&format=json", &page); err != nil {
				t.Error(err)
			}
			if len(page.Destinations) != 1 || page.Destinations[0].IP != ip {
				t.Errorf("status_url %s shows %v, want only %s", a.Annotations["status_url"], page.Destinations, ip)
			}
			return nil
		}
		return fmt.Errorf("not among %v", answer.Data.Alerts)
	}
	for _, alert := range [][3]string{
		{"[::1]:10149", "EphemeralPortsExhausted", "192.0.2.4"},
		{"[::1]:10149", "EphemeralPortsExhausted", "2001:db8::7"},
		{"[::1]:1", "EphemeralPortExporterDown", ""}, // leads to the runbook of the other exporter
	} {
		eventually(t, fmt.Sprint(alert), func() error { return follow(alert[0], alert[1], alert[2]) })
	}
}
