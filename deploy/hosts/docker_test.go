//go:build docker

package hosts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/deploy/deploytest"
)

// prepare starts dockerd, loads the image of the release by the line of install.md, and starts the workloads.
func prepare() error {
	log, err := os.Create("/tmp/dockerd.log")
	if err != nil {
		return err
	}
	dockerd := exec.Command("dockerd")
	dockerd.Stdout, dockerd.Stderr = log, log
	if err := dockerd.Start(); err != nil {
		return err
	}
	if err := eventually(time.Minute, func() error { _, err := command("docker info"); return err }); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("dockerd does not start: %w\n%s", err, text)
	}
	version, err := command("docker version --format '{{.Server.Version}}'")
	if err != nil {
		return err
	}
	fmt.Println("Docker", version)

	load := lines(installFile, `^docker tag .*docker load`)
	if len(load) != 1 {
		return fmt.Errorf("install.md has %d lines that load the image", len(load))
	}
	if _, err := command("cd " + os.Getenv("RELEASE") + " && " + load[0]); err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if _, err := command(fmt.Sprintf(`tar -C %s -c %s | docker import --change 'ENTRYPOINT ["/%[2]s"]' - load`, filepath.Dir(program), filepath.Base(program))); err != nil {
		return err
	}
	for name, w := range workloads {
		args := []string{"run", "--detach", "--name", name}
		if w.host {
			args = append(args, "--network", "host")
		}
		if w.ports != "" {
			args = append(args, "--sysctl", portRange+"="+w.ports)
		}
		args = slices.Concat(args, []string{"load", "hold"}, strings.Fields(w.hold))
		if out, err := exec.Command("docker", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("docker run %s: %w: %s", name, err, out)
		}
	}
	for name, w := range workloads {
		if err := eventually(time.Minute, func() error {
			out, err := command("docker logs " + name + " 2>&1")
			if err == nil && !slices.Contains(strings.Split(out, "\n"), w.ready) {
				err = fmt.Errorf("no %q in the log of %s:\n%s", w.ready, name, out)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// id returns the ID of a workload's container.
func id(t *testing.T, name string) string {
	t.Helper()
	return must(t, "docker inspect --format '{{.Id}}' "+name)
}

// address returns the address of a workload behind Docker's bridge.
func address(t *testing.T, name string) string {
	t.Helper()
	return must(t, "docker inspect --format '{{.NetworkSettings.Networks.bridge.IPAddress}}' "+name)
}

// checkRun runs the exporter by a line of a document, and compares its metrics with the workloads.
func checkRun(t *testing.T, line, flag string) {
	t.Helper()
	container, err := command(line)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if out, err := command("docker rm --force " + container); err != nil {
			t.Error(out, err)
		}
	}()
	if err := eventually(20*time.Second, func() error {
		metrics, err := get("/metrics")
		if err != nil {
			return err
		}
		var problems []error
		for _, s := range samples(t, flag, metrics) {
			problems = append(problems, find(metrics, s))
		}
		return errors.Join(problems...)
	}); err != nil {
		t.Error(err)
	}
	if page, err := get("/?format=text"); err != nil || !strings.Contains(page, "198.18.0.3:8082") {
		t.Errorf("%v: the page does not show the destination:\n%s", err, page)
	}
	log := must(t, "docker logs "+container+" 2>&1")
	if strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") || !strings.Contains(log, "Listening on") {
		t.Errorf("log:\n%s", log)
	}
	if state := must(t, "docker inspect --format '{{.State.Status}} {{.RestartCount}}' "+container); state != "running 0" {
		t.Errorf("it is %s", state)
	}
}

// TestInstallLines runs each line of install.md, with Docker's profile of seccomp and with ours.
func TestInstallLines(t *testing.T) {
	profile, err := filepath.Abs("../seccomp/ephemeral_port_exporter.json")
	if err != nil {
		t.Fatal(err)
	}
	_, err = command("docker run --rm --cap-add BPF load")
	old := err != nil && strings.Contains(err.Error(), `unknown capability: "CAP_BPF"`) // as install.md quotes it
	seen := map[string]bool{}
	for _, line := range lines(installFile, `^docker run `) {
		_, flag, _ := strings.Cut(line, " ephemeral_port_exporter")
		flag = strings.TrimSpace(flag)
		name := flag
		if seen[flag] {
			name += ", older Docker"
		}
		seen[flag] = true
		t.Run(name, func(t *testing.T) {
			if old && strings.Contains(line, "--cap-add BPF") {
				if _, err := command(line); err == nil || !strings.Contains(err.Error(), `unknown capability: "CAP_BPF"`) {
					t.Errorf("%v, want what install.md quotes", err)
				}
				return
			}
			checkRun(t, line, flag)
			checkRun(t, strings.Replace(line, "docker run ", "docker run --security-opt seccomp="+profile+" ", 1), flag)
		})
	}
	for _, flag := range []string{"", "--namespaces=all", "--trace", "--exact", "--snat"} {
		if !seen[flag] {
			t.Errorf("install.md has no line with %q", flag)
		}
	}
}

// TestForegroundLines runs the lines of the other documents, which are for a terminal.
func TestForegroundLines(t *testing.T) {
	for _, path := range []string{readmeFile, securityFile} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			found := lines(path, `^docker run --rm `)
			if len(found) != 1 {
				t.Fatalf("%q", found)
			}
			checkRun(t, "cd ../.. && "+strings.Replace(found[0], "docker run --rm ", "docker run --detach ", 1), "")
		})
	}
}

// TestImage checks what Docker knows of the image.
func TestImage(t *testing.T) {
	got := must(t, `docker inspect --format '{{.Config.User}} {{.Config.ExposedPorts}} {{index .Config.Labels "org.opencontainers.image.version"}} {{.RepoTags}}' ephemeral_port_exporter`)
	version := must(t, `docker run --rm ephemeral_port_exporter --version 2>&1`)
	release := regexp.MustCompile(`version (\S+) `).FindStringSubmatch(version)[1]
	for _, want := range []string{"65534:65534 map[10149/tcp:{}] " + release + " ", "ephemeral_port_exporter:" + release, "ephemeral_port_exporter:latest"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestContainerd imports the archives of the image as on a node of Kubernetes, by the line of install.md. It checks that the
// image has the name that the chart asks for.
func TestContainerd(t *testing.T) {
	chart := regexp.MustCompile(`(?m)^appVersion: (\S+)$`).FindStringSubmatch(deploytest.Read(t, "../helm/Chart.yaml"))[1]
	want := "docker.io/library/ephemeral_port_exporter:" + chart
	found := lines(installFile, `^ctr -n k8s.io images import `)
	if len(found) != 1 {
		t.Fatalf("%q", found)
	}
	ctr := "cd $RELEASE && export CONTAINERD_ADDRESS=/run/docker/containerd/containerd.sock && "
	for _, line := range []string{found[0], strings.Replace(found[0], ".linux-amd64.image.tar", ".oci.tar", 1)} {
		must(t, ctr+line)
		if got := must(t, ctr+"ctr -n k8s.io images ls --quiet name=="+want); got != want {
			t.Errorf("%s: the image is %q, want %s", line, got, want)
		}
		must(t, ctr+"ctr -n k8s.io images rm --sync "+want)
	}
}
