//go:build linux

package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/deploy/deploytest"
)

// faster divides the waiting times of the shipped files, so that tests wait seconds, not minutes. The
// results are whole seconds, at least one.
const faster = 60

// durations matches the settings that shorten changes: "for" and "keep_firing_for" of a rule, and the
// times of an Alertmanager route. It does not match ranges in expressions.
var durations = regexp.MustCompile(`(?m)^(\s+(?:for|keep_firing_for|group_wait|group_interval|repeat_interval): )(\w+)$`)

// shorten returns a rule file or Alertmanager configuration with its waiting times
// divided by faster, and nothing else changed.
func shorten(t *testing.T, config string) string {
	t.Helper()
	return durations.ReplaceAllStringFunc(config, func(line string) string {
		m := durations.FindStringSubmatch(line)
		d, err := time.ParseDuration(m[2])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return fmt.Sprintf("%s%ds", m[1], max(int(d.Seconds())/faster, 1))
	})
}

// TestShorten checks that every waiting time changes, and nothing else.
func TestShorten(t *testing.T) {
	const config = "a:\n  for: 5m\n  for: 30s\n  keep_firing_for: 4m\n  expr: x[5m]\n  group_wait: 10s\n  repeat_interval: 4h\nfor: 5m\n"
	const want = "a:\n  for: 5s\n  for: 1s\n  keep_firing_for: 4s\n  expr: x[5m]\n  group_wait: 1s\n  repeat_interval: 240s\nfor: 5m\n"
	if got := shorten(t, config); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	rules := deploytest.Read(t, "prometheus/rules.yml")
	if got, want := len(durations.FindAllString(rules, -1)), strings.Count(rules, "- alert: ")+strings.Count(rules, "keep_firing_for: "); got != want {
		t.Errorf("%d waiting times in rules.yml, want %d", got, want)
	}
}

// background runs a program until the test ends. If the test fails, it logs the output of the
// program.
func background(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", program, log.Bytes())
		}
	})
	return cmd
}

// eventually calls try until it returns no error, for at most two minutes.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// getJSON decodes an answer of an HTTP API.
func getJSON(url string, into any) error {
	text, err := getText(url)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// getText returns what a URL leads to.
func getText(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// A webhook replaces the receivers of alertmanager.yml and stores their notifications.
type webhook struct {
	mu            sync.Mutex
	notifications []notification
	groups        map[string]bool // receivers and groups that were notified
}

// A notification is one alert of one message of Alertmanager.
type notification struct {
	Receiver string
	Status   string
	Labels   map[string]string
}

func (n notification) String() string {
	return fmt.Sprintf("%s: %s %s %s", n.Receiver, n.Labels["alertname"], n.Labels["destination_ip"], n.Status)
}

// ServeHTTP receives a message, see the webhook configuration of Alertmanager.
func (w *webhook) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	var message struct {
		Receiver, GroupKey string
		Alerts             []notification
	}
	if json.NewDecoder(r.Body).Decode(&message) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groups[message.Receiver+" "+message.GroupKey] = true
	for _, a := range message.Alerts {
		a.Receiver = message.Receiver
		w.notifications = append(w.notifications, a)
	}
}

// got returns all notifications so far.
func (w *webhook) got() []notification {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.notifications)
}

// wait waits for a notification, in the form of String.
func (w *webhook) wait(t *testing.T, want string) {
	t.Helper()
	eventually(t, "notification "+want, func() error {
		for _, n := range w.got() {
			if n.String() == want {
				return nil
			}
		}
		return fmt.Errorf("got %v", w.got())
	})
}

// startAlertmanager runs Alertmanager on its default port with the shipped configuration. The waiting
// times are shortened, and one webhook replaces all receivers.
func startAlertmanager(t *testing.T) *webhook {
	t.Helper()
	program := deploytest.Tool(t, "prometheus-alertmanager", "prometheus-alertmanager")
	w := &webhook{groups: map[string]bool{}}
	server := &http.Server{Addr: "127.0.0.1:5001", Handler: w}
	go func() { _ = server.ListenAndServe() }()
	t.Cleanup(func() { server.Close() })

	config, _, _ := strings.Cut(shorten(t, deploytest.Read(t, "alertmanager/alertmanager.yml")), "\nreceivers:\n")
	config += "\nreceivers:\n"
	for _, name := range []string{"pager", "chat"} {
		config += "  - {name: " + name + ", webhook_configs: [{url: 'http://127.0.0.1:5001/'}]}\n"
	}
	dir := t.TempDir()
	background(t, program,
		"--config.file="+deploytest.Write(t, dir, "alertmanager.yml", config), "--storage.path="+dir,
		"--web.listen-address=127.0.0.1:9093", "--cluster.listen-address=")
	eventually(t, "Alertmanager", func() error {
		var status any
		return getJSON("http://127.0.0.1:9093/api/v2/status", &status)
	})
	return w
}

// firing returns the alerts that Alertmanager has, and whether each is inhibited, by
// alert name and destination.
func firing(t *testing.T) map[string]bool {
	t.Helper()
	var alerts []struct {
		Labels map[string]string
		Status struct{ InhibitedBy []string }
	}
	if err := getJSON("http://127.0.0.1:9093/api/v2/alerts", &alerts); err != nil {
		t.Fatal(err)
	}
	inhibited := map[string]bool{}
	for _, a := range alerts {
		inhibited[strings.TrimSpace(a.Labels["alertname"]+" "+a.Labels["destination_ip"])] = len(a.Status.InhibitedBy) > 0
	}
	return inhibited
}
