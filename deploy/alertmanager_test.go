//go:build linux

package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/deploy/deploytest"
)

const alertmanagerConfig = "alertmanager/alertmanager.yml"

// TestAlertmanagerConfig checks the configuration with amtool.
func TestAlertmanagerConfig(t *testing.T) {
	deploytest.Run(t, deploytest.Tool(t, "amtool", "prometheus-alertmanager"), "check-config", alertmanagerConfig)
}

// TestAlertmanagerRoutes checks the receiver of each severity.
func TestAlertmanagerRoutes(t *testing.T) {
	amtool := deploytest.Tool(t, "amtool", "prometheus-alertmanager")
	for severity, want := range map[string]string{"critical": "pager", "warning": "chat", "info": "chat"} {
		out := deploytest.Run(t, amtool, "config", "routes", "test", "--config.file="+alertmanagerConfig, "severity="+severity)
		if !strings.Contains(out, want+"\n") {
			t.Errorf("severity %s goes to %q, want %s", severity, out, want)
		}
	}
}

// TestAlertmanagerMessages renders the messages about 12 hosts.
func TestAlertmanagerMessages(t *testing.T) {
	amtool := deploytest.Tool(t, "amtool", "prometheus-alertmanager")
	var config struct {
		Receivers []struct {
			PagerDuty []map[string]string `yaml:"pagerduty_configs"`
			Slack     []map[string]string `yaml:"slack_configs"`
		}
	}
	deploytest.Unmarshal(t, alertmanagerConfig, &config)
	var alerts []map[string]any
	for i := range 12 {
		alerts = append(alerts, map[string]any{"status": "firing", "annotations": map[string]string{
			"summary": fmt.Sprint("summary ", i), "description": fmt.Sprint("description ", i), "status_url": "http://status", "runbook_url": "http://runbook",
		}})
	}
	labels := map[string]string{"alertname": "EphemeralPortsExhausted", "job": "proxies", "severity": "critical"}
	data, err := json.Marshal(map[string]any{"alerts": alerts, "commonLabels": labels})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	render := func(text string) string {
		return strings.TrimSpace(deploytest.Run(t, amtool, "template", "render", "--template.text="+text,
			"--template.data="+deploytest.Write(t, dir, "data.json", string(data)), "--template.glob="+deploytest.Write(t, dir, "empty.tmpl", "")))
	}
	pager, slack := config.Receivers[0].PagerDuty[0], config.Receivers[1].Slack[0]
	if got, want := render(pager["severity"]), "critical"; got != want {
		t.Errorf("severity %q, want %q", got, want)
	}
	if got, want := render(pager["description"]), "EphemeralPortsExhausted: 12 in proxies, such as: summary 0"; got != want {
		t.Errorf("description %q, want %q", got, want)
	}
	if got, want := render(slack["title"]), "EphemeralPortsExhausted: 12 in proxies"; got != want {
		t.Errorf("title %q, want %q", got, want)
	}
	lines := strings.Split(render(slack["text"]), "\n")
	if len(lines) != 10 || lines[9] != "description 9 http://status http://runbook" {
		t.Errorf("text %q, want a line for each of the first 10 alerts", lines)
	}
}

// postAlerts sends alerts with these labels to Alertmanager.
func postAlerts(t *testing.T, alerts []map[string]string) {
	t.Helper()
	var body []map[string]any
	for _, labels := range alerts {
		body = append(body, map[string]any{"labels": labels})
	}
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://127.0.0.1:9093/api/v2/alerts", "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("post alerts: %s", resp.Status)
	}
}

// TestAlertmanagerFleet sends the alerts of 50 hosts in trouble. They make one notification for each alert
// and job, and all hosts are in it.
func TestAlertmanagerFleet(t *testing.T) {
	w := startAlertmanager(t)
	var alerts []map[string]string
	for host := range 50 {
		for _, job := range []string{"proxies", "crawlers"} {
			for _, alert := range []string{"EphemeralPortsExhausted", "EphemeralPortsNearlyExhausted", "EphemeralPortsRateNearCeiling"} {
				for destination := range 4 {
					alerts = append(alerts, map[string]string{
						"alertname": alert, "severity": "critical", "job": job, "instance": fmt.Sprintf("proxy-%d:10149", host), "netns": "self",
						"source_ip": "10.0.0.1", "destination_ip": fmt.Sprintf("10.0.1.%d", destination), "destination_port": "443",
					})
				}
			}
		}
	}
	postAlerts(t, alerts)
	eventually(t, "notifications of all hosts", func() error {
		seen := map[string]bool{}
		for _, n := range w.got() {
			if n.Labels["alertname"] != "EphemeralPortsExhausted" {
				t.Fatalf("a muted alert arrived: %v", n)
			}
			seen[n.Labels["job"]+n.Labels["instance"]+n.Labels["destination_ip"]] = true
		}
		if len(seen) != 2*50*4 {
			return fmt.Errorf("%d alerts, want 400", len(seen))
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.groups) != 2 {
		t.Errorf("notifications of %d groups, want one for each job: %v", len(w.groups), w.groups)
	}
}

// TestAlertmanagerInhibition sends alerts to the real program and checks which are muted.
func TestAlertmanagerInhibition(t *testing.T) {
	w := startAlertmanager(t)
	host := func(instance string, labels ...string) map[string]string {
		l := map[string]string{"job": "ephemeral_port", "instance": instance, "netns": "self"}
		for i := 0; i < len(labels); i += 2 {
			l[labels[i]] = labels[i+1]
		}
		return l
	}
	destination := func(alert, severity, ip string) map[string]string {
		return host("a", "alertname", alert, "severity", severity, "source_ip", "10.0.0.1", "destination_ip", ip, "destination_port", "443")
	}
	without := func(label string, of map[string]string) map[string]string {
		delete(of, label)
		return of
	}
	with := func(label, value string, of map[string]string) map[string]string {
		of[label] = value
		return of
	}
	alerts := []map[string]string{
		destination("EphemeralPortsExhausted", "critical", "10.0.0.2"),
		destination("EphemeralPortsNearlyExhausted", "critical", "10.0.0.2"),
		destination("EphemeralPortsHalfUsed", "warning", "10.0.0.2"),
		destination("EphemeralPortsRateNearCeiling", "critical", "10.0.0.2"),
		destination("EphemeralPortsCloseWait", "warning", "10.0.0.2"),
		destination("EphemeralPortsNearlyExhausted", "critical", "10.0.0.3"),
		destination("EphemeralPortsHalfUsed", "warning", "10.0.0.3"),
		destination("EphemeralPortsRateNearCeiling", "warning", "10.0.0.3"),
		destination("EphemeralPortsHalfUsed", "warning", "10.0.0.4"),
		destination("EphemeralPortsRateNearCeiling", "warning", "10.0.0.4"),
		destination("EphemeralPortsConnectFailing", "critical", "10.0.0.5"),
		destination("EphemeralPortsExhausted", "critical", "10.0.0.5"),
		destination("EphemeralPortsNearlyExhausted", "critical", "10.0.0.5"),
		destination("EphemeralPortsHalfUsed", "warning", "10.0.0.5"),
		destination("EphemeralPortsExhaustionPredicted", "warning", "10.0.0.5"),
		destination("EphemeralPortsOpenConnectionsRise", "warning", "10.0.0.5"),
		destination("EphemeralPortsRateNearCeiling", "critical", "10.0.0.5"),
		destination("EphemeralPortsCloseWait", "warning", "10.0.0.5"),
		without("netns", host("a", "alertname", "EphemeralPortsConnectFailingUnattributed", "severity", "critical")),

		destination("EphemeralPortsConnectFailing", "critical", "10.0.0.6"),
		with("source_ip", "10.0.0.9", destination("EphemeralPortsExhausted", "critical", "10.0.0.6")),
		destination("EphemeralPortsConnectFailing", "critical", "10.0.0.7"),
		with("destination_port", "80", destination("EphemeralPortsExhausted", "critical", "10.0.0.7")),
		destination("EphemeralPortsConnectFailing", "critical", "10.0.0.8"),
		with("instance", "c", destination("EphemeralPortsExhausted", "critical", "10.0.0.8")),
		destination("EphemeralPortsConnectFailing", "critical", "10.0.0.9"),
		with("netns", "netns-7", destination("EphemeralPortsExhausted", "critical", "10.0.0.9")),
		host("d", "alertname", "EphemeralPortsAllBound", "severity", "critical"),
		host("d", "alertname", "EphemeralPortsNearlyAllBound", "severity", "critical"),
		host("d", "alertname", "EphemeralPortsHalfBound", "severity", "warning"),
		with("instance", "d", destination("EphemeralPortsExhausted", "critical", "10.0.2.2")),
		with("instance", "d", destination("EphemeralPortsConnectFailing", "critical", "10.0.2.3")),
		with("netns", "netns-7", with("instance", "d", destination("EphemeralPortsExhausted", "critical", "10.0.2.4"))),
		with("source_ip", "10.0.0.1", host("d", "alertname", "EphemeralPortsSourceNearlyExhausted", "severity", "critical")),
		host("a", "alertname", "EphemeralPortsTimeWaitOverflow", "severity", "warning"),
		host("a", "alertname", "EphemeralPortsUDPExhausted", "severity", "critical", "family", "ipv4"),
		host("a", "alertname", "EphemeralPortsUDPNearlyExhausted", "severity", "critical", "family", "ipv4"),
		host("c", "alertname", "EphemeralPortsUDPNearlyExhausted", "severity", "critical", "family", "ipv4", "destination_ip", "of another host"),
		host("a", "alertname", "EphemeralPortsUDPNearlyExhausted", "severity", "critical", "family", "ipv6", "destination_ip", "of another family"),
		with("protocol", "tcp", destination("EphemeralPortsSNATExhausted", "critical", "10.0.1.2")),
		with("protocol", "tcp", destination("EphemeralPortsSNATNearlyExhausted", "critical", "10.0.1.2")),
		with("protocol", "tcp", destination("EphemeralPortsSNATHalfUsed", "warning", "10.0.1.2")),
		with("protocol", "udp", destination("EphemeralPortsSNATNearlyExhausted", "critical", "10.0.1.3")),
		with("protocol", "udp", destination("EphemeralPortsSNATHalfUsed", "warning", "10.0.1.3")),
		with("protocol", "udp", destination("EphemeralPortsSNATExhausted", "critical", "10.0.1.4")),
		with("protocol", "tcp", destination("EphemeralPortsSNATNearlyExhausted", "critical", "10.0.1.4")),
		with("protocol", "tcp", destination("EphemeralPortsSNATExhausted", "critical", "10.0.1.5")),
		with("source_ip", "10.0.0.9", with("protocol", "tcp", destination("EphemeralPortsSNATNearlyExhausted", "critical", "10.0.1.5"))),
		host("a", "alertname", "EphemeralPortsConntrackInsertFailed", "severity", "warning"),
		host("c", "alertname", "EphemeralPortsConntrackInsertFailed", "severity", "warning", "destination_ip", "of another host"),
		host("a", "alertname", "EphemeralPortsConntrackNearlyFull", "severity", "critical"),
		host("b", "alertname", "EphemeralPortExporterDown", "severity", "critical"),
		host("b", "alertname", "EphemeralPortsCollectFailing", "severity", "critical"),
		host("b", "alertname", "NodeDown", "severity", "warning"),
	}
	postAlerts(t, alerts)

	want := map[string]bool{ // whether it is muted
		"EphemeralPortsExhausted 10.0.0.2":       false,
		"EphemeralPortsNearlyExhausted 10.0.0.2": true,
		"EphemeralPortsHalfUsed 10.0.0.2":        true,
		"EphemeralPortsRateNearCeiling 10.0.0.2": true,
		"EphemeralPortsCloseWait 10.0.0.2":       false,
		"EphemeralPortsNearlyExhausted 10.0.0.3": false,
		"EphemeralPortsHalfUsed 10.0.0.3":        true,
		"EphemeralPortsRateNearCeiling 10.0.0.3": true,
		"EphemeralPortsHalfUsed 10.0.0.4":        false, // a warning mutes none
		"EphemeralPortsRateNearCeiling 10.0.0.4": false,

		"EphemeralPortsConnectFailing 10.0.0.5":      false,
		"EphemeralPortsExhausted 10.0.0.5":           true,
		"EphemeralPortsNearlyExhausted 10.0.0.5":     true,
		"EphemeralPortsHalfUsed 10.0.0.5":            true,
		"EphemeralPortsExhaustionPredicted 10.0.0.5": true,
		"EphemeralPortsOpenConnectionsRise 10.0.0.5": true,
		"EphemeralPortsRateNearCeiling 10.0.0.5":     true,
		"EphemeralPortsCloseWait 10.0.0.5":           false,
		"EphemeralPortsConnectFailingUnattributed":   false,

		"EphemeralPortsConnectFailing 10.0.0.6": false,
		"EphemeralPortsExhausted 10.0.0.6":      false, // from another source
		"EphemeralPortsConnectFailing 10.0.0.7": false,
		"EphemeralPortsExhausted 10.0.0.7":      false, // to another port
		"EphemeralPortsConnectFailing 10.0.0.8": false,
		"EphemeralPortsExhausted 10.0.0.8":      false, // on another host
		"EphemeralPortsConnectFailing 10.0.0.9": false,
		"EphemeralPortsExhausted 10.0.0.9":      false, // in another network namespace

		"EphemeralPortsUDPExhausted":                         false,
		"EphemeralPortsUDPNearlyExhausted":                   true,
		"EphemeralPortsUDPNearlyExhausted of another host":   false,
		"EphemeralPortsUDPNearlyExhausted of another family": false,

		"EphemeralPortsAllBound":                false,
		"EphemeralPortsNearlyAllBound":          true,
		"EphemeralPortsHalfBound":               true,
		"EphemeralPortsExhausted 10.0.2.2":      true,
		"EphemeralPortsConnectFailing 10.0.2.3": false,
		"EphemeralPortsExhausted 10.0.2.4":      false, // in another network namespace
		"EphemeralPortsSourceNearlyExhausted":   false,

		"EphemeralPortsTimeWaitOverflow": false,

		"EphemeralPortsSNATExhausted 10.0.1.2":       false,
		"EphemeralPortsSNATNearlyExhausted 10.0.1.2": true,
		"EphemeralPortsSNATHalfUsed 10.0.1.2":        true,
		"EphemeralPortsSNATNearlyExhausted 10.0.1.3": false,
		"EphemeralPortsSNATHalfUsed 10.0.1.3":        true,
		"EphemeralPortsSNATExhausted 10.0.1.4":       false,
		"EphemeralPortsSNATNearlyExhausted 10.0.1.4": false, // of another protocol
		"EphemeralPortsSNATExhausted 10.0.1.5":       false,
		"EphemeralPortsSNATNearlyExhausted 10.0.1.5": false, // of another translated address

		"EphemeralPortsConntrackInsertFailed":                 true,
		"EphemeralPortsConntrackInsertFailed of another host": false,
		"EphemeralPortsConntrackNearlyFull":                   false,

		"EphemeralPortExporterDown":    false,
		"EphemeralPortsCollectFailing": true,
		"NodeDown":                     false,
	}
	eventually(t, "inhibition", func() error {
		if diff := cmp.Diff(want, firing(t)); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
	w.wait(t, "pager: EphemeralPortsExhausted 10.0.0.2 firing")
	w.wait(t, "chat: EphemeralPortsHalfUsed 10.0.0.4 firing")
	for _, n := range w.got() {
		name := strings.TrimSpace(n.Labels["alertname"] + " " + n.Labels["destination_ip"])
		if want[name] {
			t.Errorf("a muted alert arrived: %v", n)
		}
	}
}
