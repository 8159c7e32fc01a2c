//go:build linux

package deploy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

// onMachine lets the calling test change /etc, /usr, /var and /run. It sees those of the machine, but /run is
// empty, and what it writes is gone when it ends.
func onMachine(t *testing.T) {
	t.Helper()
	netnstest.HostRoot(t)
	// The thread is never unlocked: the runtime ends it together with the goroutine.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mount := func(source, target, kind string, flags uintptr, options string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, options); err != nil {
			t.Fatalf("mount %s on %s: %v", kind, target, err)
		}
	}
	mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	mount("tmpfs", dir, "tmpfs", 0, "")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, path := range []string{"/etc", "/usr", "/var"} {
		upper, work := dir+path+".upper", dir+path+".work"
		if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
			t.Fatal(err)
		}
		mount("overlay", path, "overlay", 0, "lowerdir="+path+",upperdir="+upper+",workdir="+work)
	}
	mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	// Debian's man-db would index all pages of the machine whenever a package changes some.
	if err := os.Remove("/var/lib/man-db/auto-update"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

const systemctlLog = "/run/systemctl.log"

// pretendSystemd has the machine look as if systemd ran: packages may start services, and systemctl notes
// how it is called, and starts and stops nothing. Otherwise, the tests run without systemd, as in a container.
func pretendSystemd(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll("/run/systemd/system", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove("/usr/sbin/policy-rc.d"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	const systemctl = `#!/bin/sh
echo "$*" >>` + systemctlLog + `
case "$*" in
*daemon-reload*|*start*|*stop*) exit ;;
esac
SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl.machine $(echo "$*" | sed 's/--now//')
`
	if err := os.Rename("/usr/bin/systemctl", "/usr/bin/systemctl.machine"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/usr/bin/systemctl", []byte(systemctl), 0o755); err != nil {
		t.Fatal(err)
	}
}

// systemctlCalls returns which services systemctl was told to start, stop, enable or disable since the last
// call.
func systemctlCalls(t *testing.T) []string {
	t.Helper()
	calls, err := os.ReadFile(systemctlLog)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(systemctlLog, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var changes []string
	for line := range strings.Lines(string(calls)) {
		words := slices.DeleteFunc(strings.Fields(line), func(w string) bool { return strings.HasPrefix(w, "--") })
		if words[0] != "is-enabled" && words[0] != "is-active" && words[0] != "preset" {
			changes = append(changes, strings.ReplaceAll(strings.Join(words, " "), "ephemeral_port_exporter", "NAME"))
		}
	}
	return slices.Compact(changes) // to reload twice changes nothing
}

// exporterFiles returns the files of the machine that are named after the exporter.
func exporterFiles(t *testing.T) []string {
	t.Helper()
	name := regexp.MustCompile(`ephemeral[-_]port[-_]exporter`)
	var files []string
	for _, root := range []string{"/etc", "/usr", "/var", "/run"} {
		if err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // another process removed it
				return nil
			case err == nil && name.MatchString(entry.Name()):
				files = append(files, path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// installBlock returns the first block of install.md after some words.
func installBlock(t *testing.T, after, language string) string {
	t.Helper()
	_, rest, _ := strings.Cut(deploytest.Read(t, "docs/install.md"), after)
	_, rest, _ = strings.Cut(rest, "\n```"+language+"\n")
	block, _, ok := strings.Cut(rest, "\n```\n")
	if !ok {
		t.Fatalf("install.md has no block of %s after %q", language, after)
	}
	return block
}

// shell runs commands in a directory.
func shell(t *testing.T, dir, commands string) {
	t.Helper()
	cmd := exec.Command("bash", "-euc", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v\n%s", commands, err, out)
	}
}

const (
	unitFile    = "/ephemeral_port_exporter.service"
	defaultFile = "/etc/default/ephemeral_port_exporter"
)

// runUnit runs the exporter as the installed unit says, as an ordinary user. The caller ends it.
func runUnit(t *testing.T, unitDir string) *exec.Cmd {
	t.Helper()
	unit := deploytest.Read(t, unitDir+unitFile)
	m := regexp.MustCompile(`(?m)^ExecStart=(.+)$`).FindStringSubmatch(unit)
	if m == nil || !strings.Contains(unit, "\nEnvironmentFile=-"+defaultFile+"\n") {
		t.Fatalf("no ExecStart or EnvironmentFile in\n%s", unit)
	}
	// The shell splits $ARGS into words like systemd.
	return background(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "sh", "-c", ". "+defaultFile+"; exec "+m[1])
}

// stop ends a program of background.
func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", cmd, err)
	}
}

// scrapeVersion waits for an exporter that reads its host, and returns its version.
func scrapeVersion(t *testing.T, url string, client *http.Client) (version string) {
	t.Helper()
	defer client.CloseIdleConnections()
	eventually(t, url, func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		m := regexp.MustCompile(`\nephemeral_port_exporter_build_info\{.*version="([^"]+)"`).FindSubmatch(body)
		if m == nil || !strings.Contains(string(body), "\nephemeral_port_collect_success{netns=\"self\"} 1\n") {
			return fmt.Errorf("%s:\n%s", resp.Status, body)
		}
		version = string(m[1])
		return nil
	})
	return version
}

// A packaging is how a kind of package is installed, and what its scripts do.
type packaging struct {
	tool, debianPackage string
	install             string // block of install.md
	upgrade, remove     string // commands, in the folder of the newer release
	left                []string

	// What systemctl is told to change, if systemd runs.
	installCalls, upgradeCalls, removeCalls []string
}

// testPackages installs, upgrades and removes packages on this machine, with systemd and without. It runs
// the exporter as the unit says.
func testPackages(t *testing.T, older, version string) {
	netnstest.HostRoot(t)
	const newer = "99.0.0"
	newerFolder, _ := makeRelease(t, newer)
	const rpm = "rpm --nodeps --dbpath /var/lib/rpm " // the machine has no packages of this kind
	for name, p := range map[string]packaging{
		"deb": {
			tool: "apt", debianPackage: "apt",
			install:      installBlock(t, "**Debian, Ubuntu**", "sh"),
			upgrade:      installBlock(t, "**Debian, Ubuntu**", "sh"),
			remove:       "apt -y purge ephemeral-port-exporter",
			installCalls: []string{"daemon-reload", "start NAME.service"},
			upgradeCalls: []string{"daemon-reload", "try-restart NAME.service"},
			removeCalls:  []string{"stop NAME.socket NAME.service", "daemon-reload"},
		},
		"rpm": {
			tool: "rpm", debianPackage: "rpm",
			install:      strings.Replace(installBlock(t, "**Fedora, RHEL**", "sh"), "dnf install ", rpm+"-U ", 1),
			upgrade:      rpm + "-U ephemeral-port-exporter-*.$(uname -m).rpm",
			remove:       rpm + "-e ephemeral-port-exporter",
			left:         []string{defaultFile + ".rpmsave"}, // it was changed
			installCalls: []string{"daemon-reload", "enable NAME"},
			upgradeCalls: []string{"daemon-reload", "try-restart NAME.service"},
			removeCalls:  []string{"disable NAME.service NAME.socket", "stop NAME.socket NAME.service", "daemon-reload"},
		},
	} {
		for _, systemd := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/systemd=%v", name, systemd), func(t *testing.T) {
				deploytest.Tool(t, p.tool, p.debianPackage)
				onMachine(t)
				if systemd {
					pretendSystemd(t)
				}
				checkCalls := func(when string, want []string) {
					t.Helper()
					if !systemd {
						return
					}
					if diff := cmp.Diff(want, systemctlCalls(t)); diff != "" {
						t.Errorf("calls of systemctl %s (-want +got):\n%s", when, diff)
					}
				}
				checkVersion := func(want string) {
					t.Helper()
					exporter := runUnit(t, "/usr/lib/systemd/system")
					if got := scrapeVersion(t, "http://127.0.0.1:10149/metrics", http.DefaultClient); got != want {
						t.Errorf("version %s runs, want %s", got, want)
					}
					stop(t, exporter)
				}

				before := exporterFiles(t)
				install := p.install
				if !systemd {
					install = strings.Replace(install, "\nsystemctl enable --now ephemeral_port_exporter", "", 1)
				}
				shell(t, older, install)
				checkCalls("when it is installed", p.installCalls)
				checkInstalled(t)
				checkVersion(version)
				const link = "/etc/systemd/system/multi-user.target.wants" + unitFile
				if _, err := os.Lstat(link); err != nil {
					t.Errorf("the service is not enabled: %v", err)
				}

				const setting = `ARGS="--web.listen-address=127.0.0.1:10149"` + "\n"
				deploytest.Write(t, "/etc/default", exporterProgram, setting)
				if !systemd {
					shell(t, "/", "SYSTEMD_OFFLINE=1 systemctl enable ephemeral_port_exporter.socket")
				}
				shell(t, newerFolder, p.upgrade)
				checkCalls("when it is upgraded", p.upgradeCalls)
				if got := deploytest.Read(t, defaultFile); got != setting {
					t.Errorf("the upgrade changed %s to %q", defaultFile, got)
				}
				checkVersion(newer)

				shell(t, "/", p.remove)
				checkCalls("when it is removed", p.removeCalls)
				if diff := cmp.Diff(slices.Concat(p.left, before), exporterFiles(t)); diff != "" {
					t.Errorf("files after the removal (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// checkInstalled compares the files of a package with those of the checkout. The units run the binary in
// /usr/bin.
func checkInstalled(t *testing.T) {
	t.Helper()
	packaged := strings.NewReplacer("/usr/local/bin/ephemeral_port_exporter", "/usr/bin/ephemeral_port_exporter")
	check := func(installed, source string) {
		t.Helper()
		if diff := cmp.Diff(packaged.Replace(deploytest.Read(t, source)), deploytest.Read(t, installed)); diff != "" {
			t.Errorf("%s (-checkout +installed):\n%s", installed, diff)
		}
	}
	check("/usr/lib/systemd/system/ephemeral_port_exporter.service", "systemd/ephemeral_port_exporter.service")
	check("/usr/lib/systemd/system/ephemeral_port_exporter.socket", "systemd/ephemeral_port_exporter.socket")
	check(defaultFile, "systemd/ephemeral_port_exporter.default")
	// Some containers leave documents out.
	if config, _ := filepath.Glob("/etc/dpkg/dpkg.cfg.d/*"); config != nil {
		for _, path := range config {
			if strings.Contains(deploytest.Read(t, path), "path-exclude") {
				return
			}
		}
	}
	for _, file := range []string{"systemd/all-namespaces.conf", "systemd/tls.conf", "prometheus/rules.yml", "grafana/dashboard.json", "CHANGELOG.md"} {
		check("/usr/share/doc/ephemeral-port-exporter/"+file, file)
	}
}

// testReadmeInstall runs the blocks of install.md that install without a package.
func testReadmeInstall(t *testing.T, folder, version string) {
	netnstest.HostRoot(t)
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	copyOf := t.TempDir() // the archive is unpacked there
	shell(t, folder, "ln -s $PWD/*.tar.gz "+copyOf)
	for after, tt := range map[string]struct{ dir, version string }{
		"**Other distributions": {copyOf, version},
		"**From a checkout**":   {checkout, "(devel)"},
	} {
		t.Run(after, func(t *testing.T) {
			onMachine(t)
			pretendSystemd(t)
			block := strings.ReplaceAll(installBlock(t, after, "sh"), "linux-amd64", "linux-"+runtime.GOARCH)
			for range 2 { // the second is an upgrade
				shell(t, tt.dir, block)
			}
			want := []string{"daemon-reload", "enable NAME", "restart NAME"}
			if diff := cmp.Diff(slices.Concat(want, want), systemctlCalls(t)); diff != "" {
				t.Errorf("calls of systemctl (-want +got):\n%s", diff)
			}
			for installed, source := range map[string]string{defaultFile: ".default", "/etc/systemd/system" + unitFile: ".service"} {
				if diff := cmp.Diff(deploytest.Read(t, "systemd/ephemeral_port_exporter"+source), deploytest.Read(t, installed)); diff != "" {
					t.Errorf("%s (-checkout +installed):\n%s", installed, diff)
				}
			}
			exporter := runUnit(t, "/etc/systemd/system")
			if got := scrapeVersion(t, "http://127.0.0.1:10149/metrics", http.DefaultClient); got != tt.version {
				t.Errorf("version %s runs, want %s", got, tt.version)
			}
			stop(t, exporter)
		})
	}
}

// testReadmeTLS runs the blocks of install.md for a drop-in and for TLS. A Prometheus with the
// configuration of install.md scrapes the result.
func testReadmeTLS(t *testing.T, folder, version string) {
	prometheus := deploytest.Tool(t, "prometheus", "prometheus")
	deploytest.Tool(t, "htpasswd", "apache2-utils")
	deploytest.Tool(t, "openssl", "openssl")
	onMachine(t)
	pretendSystemd(t)
	// Some containers leave documents out.
	shell(t, folder, "rm -f /etc/dpkg/dpkg.cfg.d/*\n"+installBlock(t, "**Debian, Ubuntu**", "sh"))
	shell(t, "/", installBlock(t, "**Options that need", "sh"))
	shell(t, "/", installBlock(t, "\n## TLS and authentication\n", "sh"))

	// What systemd does for LoadCredential=.
	const dropIns = "/etc/systemd/system/ephemeral_port_exporter.service.d/"
	const credentials = "/run/credentials/ephemeral_port_exporter.service"
	deploytest.Read(t, dropIns+"all-namespaces.conf")
	loaded := regexp.MustCompile(`(?m)^LoadCredential=(\S+?):(\S+)$`).FindAllStringSubmatch(deploytest.Read(t, dropIns+"tls.conf"), -1)
	if len(loaded) != 3 {
		t.Errorf("%d credentials, want the configuration, the certificate and its key", len(loaded))
	}
	for _, m := range loaded {
		shell(t, "/", "install -D -o 65534 -m 400 "+m[2]+" "+credentials+"/"+m[1])
	}
	for _, path := range []string{"server.key", "password"} {
		cmd := exec.Command("setpriv", "--reuid=65534", "--clear-groups", "--regid=65534", "cat", "/etc/ephemeral_port_exporter/"+path)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("any user can read %s: %s", path, out)
		}
	}
	runUnit(t, "/usr/lib/systemd/system")

	certificate := deploytest.Read(t, "/etc/ephemeral_port_exporter/server.crt")
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(certificate)) {
		t.Fatal("no certificate")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	password := strings.TrimSpace(deploytest.Read(t, "/etc/ephemeral_port_exporter/password"))
	if got := scrapeVersion(t, "https://prometheus:"+password+"@localhost:10149/metrics", client); got != version {
		t.Errorf("version %s runs, want %s", got, version)
	}
	resp, err := client.Get("https://prometheus:wrong@localhost:10149/metrics")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %s with a wrong password", resp.Status)
	}

	deploytest.Write(t, "/etc/prometheus", "ephemeral_port.crt", certificate)
	deploytest.Write(t, "/etc/prometheus", "ephemeral_port.password", password+"\n")
	config := "global: {scrape_interval: 1s}\n" + installBlock(t, "\n## TLS and authentication\n", "yaml")
	dir := t.TempDir()
	background(t, prometheus, "--config.file="+deploytest.Write(t, dir, "prometheus.yml", config),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090")
	waitFor(t, `up{job="ephemeral_port"} == 1`)
}

// TestReadmeDocker compares the lines for Docker with the table of capabilities.
func TestReadmeDocker(t *testing.T) {
	capabilities := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^\| CAP_(\w+) \| ([^|]+) \| ([^|]+) \|`).FindAllStringSubmatch(deploytest.Read(t, "docs/security.md"), -1) {
		for _, flag := range regexp.MustCompile(`--[a-z-]+(=\w+)?`).FindAllString(m[2], -1) {
			if !strings.Contains(m[3], "not as root") {
				capabilities[flag] = append(capabilities[flag], m[1])
			}
		}
	}
	const always = "docker run -d --restart unless-stopped --network host --cgroupns host --volume /sys/fs/cgroup:/sys/fs/cgroup:ro --read-only --security-opt no-new-privileges --cap-drop ALL"
	needs := map[string]string{
		"--namespaces=all": " --pid host --security-opt apparmor=unconfined --volume /run/netns:/run/netns:ro,rslave",
	}
	var want []string
	for _, flag := range []string{"", "--namespaces=all", "--trace", "--exact", "--snat"} {
		line := always
		if flag != "" {
			if len(capabilities[flag]) == 0 {
				t.Errorf("the table has no capabilities of %s", flag)
			}
			line += " --user 0"
		}
		for _, c := range capabilities[flag] {
			line += " --cap-add " + c
		}
		want = append(want, strings.TrimSpace(line+needs[flag]+" ephemeral_port_exporter "+flag))
		checkFlags(t, "install.md", flag)
	}
	if diff := cmp.Diff(strings.Join(want, "\n"), installBlock(t, "Then one of these", "sh")); diff != "" {
		t.Errorf("(-want +install.md):\n%s", diff)
	}
	older := strings.ReplaceAll(want[2]+"\n"+want[3], "--cap-add BPF --cap-add PERFMON", "--cap-add SYS_ADMIN")
	if diff := cmp.Diff(older, installBlock(t, "Older Docker", "sh")); diff != "" {
		t.Errorf("of older Docker (-want +install.md):\n%s", diff)
	}
}
