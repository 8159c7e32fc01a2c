//go:build linux

package deploy

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

// helmManifests returns what the chart makes of the values in its testdata.
func helmManifests(t *testing.T) (paths []string) {
	t.Helper()
	paths, err := filepath.Glob("helm/testdata/*.golden.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal("no manifests of the chart", err)
	}
	return paths
}

// TestHelm checks that the flags of the chart exist. Package chart has its other tests.
func TestHelm(t *testing.T) {
	for _, path := range append(helmManifests(t), "helm/values.yaml") {
		checkFlags(t, path, deploytest.Read(t, path))
	}
}

// TestHelmPrivileges checks that the exporter starts with the flags, the user and the capabilities of each
// manifest, and that it does not start without one of these capabilities.
func TestHelmPrivileges(t *testing.T) {
	netnstest.HostRoot(t)
	for _, path := range helmManifests(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, document, _ := strings.Cut(deploytest.Read(t, path), "/templates/daemonset.yaml\n")
			document, _, _ = strings.Cut(document, "\n---\n")
			var daemonSet struct {
				Spec struct {
					Template struct {
						Spec struct {
							SecurityContext struct {
								RunAsUser int `yaml:"runAsUser"`
							} `yaml:"securityContext"`
							Containers []struct {
								Args            []string
								SecurityContext struct {
									AllowPrivilegeEscalation bool                   `yaml:"allowPrivilegeEscalation"`
									Capabilities             struct{ Add []string } `yaml:"capabilities"`
								} `yaml:"securityContext"`
							}
						}
					}
				}
			}
			if err := yaml.Unmarshal([]byte(document), &daemonSet); err != nil {
				t.Fatal(err)
			}
			pod := daemonSet.Spec.Template.Spec
			c := pod.Containers[0]
			args := []string{netnstest.ProgramPath(exporterProgram), "--web.listen-address=127.0.0.1:0"}
			for _, arg := range c.Args {
				switch {
				case strings.HasPrefix(arg, "--web."), strings.HasPrefix(arg, "--log."):
				default: // without a mount
					args = append(args, strings.ReplaceAll(arg, "=/host/", "=/"))
				}
			}
			added := c.SecurityContext.Capabilities.Add
			escalation := c.SecurityContext.AllowPrivilegeEscalation
			if out, ok := listens(t, pod.SecurityContext.RunAsUser, added, escalation, args); !ok {
				t.Errorf("%q does not start with %v:\n%s", args, added, out)
			}
			for i, name := range added {
				if slices.Contains(added, "SYS_ADMIN") && (name == "BPF" || name == "PERFMON") {
					continue // CAP_SYS_ADMIN includes them
				}
				if name == "BPF" && slices.Contains(added, "NET_ADMIN") && !slices.Contains(added, "PERFMON") {
					continue // for the maps of Cilium, which may come later: scans say what is missing
				}
				if out, ok := listens(t, pod.SecurityContext.RunAsUser, slices.Delete(slices.Clone(added), i, i+1), escalation, args); ok {
					t.Errorf("%q starts without %s:\n%s", args, name, out)
				}
			}
		})
	}
}

// listens starts the exporter as a user with these capabilities and nothing else, as Kubernetes does,
// until it listens, and reports whether it does.
func listens(t *testing.T, user int, capabilities []string, escalation bool, args []string) (log string, ok bool) {
	t.Helper()
	id, bounding := strconv.Itoa(user), "-all"
	for _, name := range capabilities {
		bounding += ",+" + strings.ToLower(name)
	}
	flags := []string{"--reuid=" + id, "--regid=" + id, "--clear-groups", "--inh-caps=-all", "--bounding-set=" + bounding}
	if !escalation {
		flags = append(flags, "--no-new-privs")
	}
	cmd := exec.Command(deploytest.Tool(t, "setpriv", "util-linux"), append(flags, args...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		log += lines.Text() + "\n"
		if !ok && strings.Contains(lines.Text(), `msg="Listening on"`) {
			ok = true
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); ok && err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	return log, ok
}
