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
)

const alertmanagerConfig = "alertmanager/alertmanager.yml"

// TestAlertmanagerConfig checks the configuration with amtool.
func TestAlertmanagerConfig(t *testing.T) {
	run(t, tool(t, "amtool", "prometheus-alertmanager"), "check-config", alertmanagerConfig)
}

// TestAlertmanagerRoutes checks the receiver of each severity.
func TestAlertmanagerRoutes(t *testing.T) {
	amtool := tool(t, "amtool", "prometheus-alertmanager")
	for severity, want := range map[string]string{"critical": "pager", "warning": "chat", "info": "chat"} {
		out := run(t, amtool, "config", "routes", "test", "--config.file="+alertmanagerConfig, "severity="+severity)
		if !strings.Contains(out, want+"\n") {
			t.Errorf("severity %s goes to %q, want %s", severity, out, want)
		}
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
		destination("EphemeralPortsHalfUsed", "warning", "10.0.0.4"),
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
		host("a", "alertname", "EphemeralPortsTimeWaitOverflow", "severity", "warning"),
		host("b", "alertname", "EphemeralPortExporterDown", "severity", "critical"),
		host("b", "alertname", "EphemeralPortsCollectFailing", "severity", "critical"),
		host("b", "alertname", "NodeDown", "severity", "warning"),
	}
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

	want := map[string]bool{ // whether it is muted
		"EphemeralPortsExhausted 10.0.0.2":       false,
		"EphemeralPortsNearlyExhausted 10.0.0.2": true,
		"EphemeralPortsHalfUsed 10.0.0.2":        true,
		"EphemeralPortsRateNearCeiling 10.0.0.2": true,
		"EphemeralPortsCloseWait 10.0.0.2":       false,
		"EphemeralPortsNearlyExhausted 10.0.0.3": false,
		"EphemeralPortsHalfUsed 10.0.0.3":        true,
		"EphemeralPortsHalfUsed 10.0.0.4":        false,

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

		"EphemeralPortsTimeWaitOverflow": false,
		"EphemeralPortExporterDown":      false,
		"EphemeralPortsCollectFailing":   true,
		"NodeDown":                       false,
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
