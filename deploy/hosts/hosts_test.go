//go:build docker || kubernetes || systemd

// Package hosts runs the release on real hosts, by the commands of the documents as they are. With the build tag docker, its
// tests run in Docker, on a host that .ci/docker makes; with kubernetes, in a cluster of one node, on a host that .ci/kubernetes
// makes; with systemd, as root of the machine that .ci/systemd boots.
package hosts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/deploy/deploytest"
)

const exporter = "http://localhost:10149"

// Documents, seen from the directory of this package.
const (
	installFile  = "../docs/install.md"
	securityFile = "../docs/security.md"
	readmeFile   = "../../README.md"
)

// lines returns the lines of a document that match. A line that ends with a backslash goes on in the next.
func lines(path, expression string) (found []string) {
	text, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", "")) {
		if regexp.MustCompile(expression).MatchString(line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// block returns the first block of commands behind some words of a document.
func block(t *testing.T, path, words string) string {
	t.Helper()
	_, rest, _ := strings.Cut(deploytest.Read(t, path), words)
	_, rest, _ = strings.Cut(rest, "\n```sh\n")
	commands, _, ok := strings.Cut(rest, "\n```\n")
	if !ok {
		t.Fatalf("%s has no commands behind %q", path, words)
	}
	return commands
}

// command runs a command of a shell, and returns its output.
func command(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // of an emulated machine
	defer cancel()
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", line, err, &stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// must is command for what has to succeed.
func must(t *testing.T, line string) string {
	t.Helper()
	out, err := command(line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually tries until there is no error.
func eventually(limit time.Duration, try func() error) (err error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		if err = try(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// get returns what the exporter answers.
func get(path string) (string, error) {
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(exporter + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}
