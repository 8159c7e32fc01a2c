//go:build linux

package deploy

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

// testRevision is the revision of the releases that tests make: not every checkout has a history.
const testRevision = "0123456789abcdef0123456789abcdef01234567"

// makeRelease makes a release and returns its folder and its version, the newest of the changelog unless
// the test names one.
func makeRelease(t *testing.T, version string) (folder, made string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "release")
	cmd := exec.Command("../.ci/release", folder)
	cmd.Env = append(os.Environ(), "REVISION="+testRevision, "SOURCE_DATE_EPOCH=1700000000", "VERSION="+version)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	made = version
	if made == "" {
		made = regexp.MustCompile(`\n## (\S+) / \d{4}-\d\d-\d\d\n`).FindStringSubmatch(deploytest.Read(t, "CHANGELOG.md"))[1]
	}
	return folder, made
}

// TestRelease checks what a release consists of, and installs it.
func TestRelease(t *testing.T) {
	folder, version := makeRelease(t, "")
	t.Run("names", func(t *testing.T) { testReleaseNames(t, folder, version) })
	t.Run("reproducible", func(t *testing.T) { testReleaseReproducible(t, folder) })
	t.Run("archives", func(t *testing.T) { testReleaseArchives(t, folder, version) })
	t.Run("manual", func(t *testing.T) { testReleaseManual(t, folder, version) })
	t.Run("package files", func(t *testing.T) { testPackageFiles(t, folder) })
	t.Run("image", func(t *testing.T) { testReleaseImage(t, folder, version) })
	t.Run("chart", func(t *testing.T) { testReleaseChart(t, folder, version) })
	t.Run("packages", func(t *testing.T) { testPackages(t, folder, version) })
	t.Run("README install", func(t *testing.T) { testReadmeInstall(t, folder, version) })
	t.Run("README TLS", func(t *testing.T) { testReadmeTLS(t, folder, version) })
}

// testReleaseNames compares the names of the files with SHA256SUMS and with install.md.
func testReleaseNames(t *testing.T, folder, version string) {
	want := []string{
		"SHA256SUMS",
		"ephemeral-port-exporter-VERSION-1.aarch64.rpm", "ephemeral-port-exporter-VERSION-1.x86_64.rpm",
		"ephemeral-port-exporter-VERSION.chart.oci.tar", "ephemeral-port-exporter-VERSION.tgz",
		"ephemeral-port-exporter_VERSION_amd64.deb", "ephemeral-port-exporter_VERSION_arm64.deb",
		"ephemeral_port_exporter-VERSION.linux-amd64.cdx.json", "ephemeral_port_exporter-VERSION.linux-amd64.image.tar", "ephemeral_port_exporter-VERSION.linux-amd64.tar.gz",
		"ephemeral_port_exporter-VERSION.linux-arm64.cdx.json", "ephemeral_port_exporter-VERSION.linux-arm64.image.tar", "ephemeral_port_exporter-VERSION.linux-arm64.tar.gz",
		"ephemeral_port_exporter-VERSION.oci.tar",
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, strings.Replace(e.Name(), version, "VERSION", 1))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = folder
	if out, err := check.CombinedOutput(); err != nil || strings.Count(string(out), ": OK\n") != len(want)-1 {
		t.Errorf("%s: %v\n%s", check, err, out)
	}

	install := deploytest.Read(t, "docs/install.md")
	globs := regexp.MustCompile(`ephemeral[-_]port[-_]exporter[-_]\*(?:\$\([^)]*\)|[^ \n])*\.(?:deb|rpm|tar\.gz|tgz|tar)`).FindAllString(install, -1)
	for _, glob := range globs {
		glob = strings.NewReplacer("$(dpkg --print-architecture)", "amd64", "$(uname -m)", "x86_64").Replace(glob)
		if files, err := filepath.Glob(filepath.Join(folder, glob)); err != nil || len(files) != 1 {
			t.Errorf("install.md: %s stands for %q, want one file (%v)", glob, files, err)
		}
	}
	kinds := map[string]bool{}
	for _, glob := range globs {
		kinds[glob[strings.LastIndex(glob, "*")+1:]] = true
	}
	if len(kinds) != 7 {
		t.Errorf("install.md: %v, want the deb, the rpm, the archive, two kinds of image and two of the chart", kinds)
	}
	for _, tag := range regexp.MustCompile(`:(\d+\.\d+\.\d+)\b`).FindAllStringSubmatch(install, -1) {
		if tag[1] != version {
			t.Errorf("install.md has the tag %s, the release is %s", tag[1], version)
		}
	}
}

// testReleaseReproducible makes the release again and compares all bytes.
func testReleaseReproducible(t *testing.T, folder string) {
	again, _ := makeRelease(t, "")
	if diff := cmp.Diff(deploytest.Read(t, filepath.Join(folder, "SHA256SUMS")), deploytest.Read(t, filepath.Join(again, "SHA256SUMS"))); diff != "" {
		t.Errorf("checksums of two releases (-first +second):\n%s", diff)
	}
}

// untar returns the files of an archive by name, and checks their time.
func untar(t *testing.T, program, archive string, names ...string) map[string][]byte {
	t.Helper()
	cmd := exec.Command(program, append([]string{"-c", archive}, names...)...)
	if program == "cat" {
		cmd = exec.Command(program, archive)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatalf("%s: %v", archive, err)
		}
		if h.ModTime.Unix() != 1700000000 {
			t.Errorf("%s: %s has the time %v", archive, h.Name, h.ModTime)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatalf("%s: %v", archive, err)
		}
	}
}

// testReleaseArchives checks the binaries, compares the other files with those of the checkout, and the
// bill of materials with go.mod.
func testReleaseArchives(t *testing.T, folder, version string) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		base := "ephemeral_port_exporter-" + version + ".linux-" + arch
		files := untar(t, "gzip", filepath.Join(folder, base+".tar.gz"), "-d")
		binary := files[base+"/"+exporterProgram]
		delete(files, base+"/"+exporterProgram)
		checkBinary(t, binary, machine)

		var got []string
		for name, content := range files {
			path := strings.TrimPrefix(name, base+"/")
			if strings.HasPrefix(path, "share/") {
				continue // testReleaseManual checks these
			}
			got = append(got, path)
			if string(content) != deploytest.Read(t, filepath.Join("..", path)) {
				t.Errorf("%s: %s is not that of the checkout", base, path)
			}
		}
		want := []string{"README.md", "deploy/CHANGELOG.md", "deploy/runbook.md", "deploy/status.png"}
		for _, pattern := range []string{"alertmanager/*", "docs/*", "grafana/*.json", "grafana/*.png", "prometheus/prometheus.yml", "prometheus/rules.yml", "seccomp/*", "systemd/*"} {
			paths, err := filepath.Glob(pattern)
			if err != nil || len(paths) == 0 {
				t.Errorf("%s: %q, %v", pattern, paths, err)
			}
			for _, path := range paths {
				want = append(want, "deploy/"+path)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("files of %s (-want +got):\n%s", base, diff)
		}
		checkMaterials(t, filepath.Join(folder, base+".cdx.json"), version, binary)
	}
}

// testReleaseManual reads the man page, and completes a flag with bash and zsh.
func testReleaseManual(t *testing.T, folder, version string) {
	base := "ephemeral_port_exporter-" + version + ".linux-" + runtime.GOARCH
	dir := t.TempDir()
	shell(t, dir, "tar xf "+filepath.Join(folder, base+".tar.gz"))
	share := filepath.Join(dir, base, "share")

	const page = "/man/man1/ephemeral_port_exporter.1.gz"
	for _, program := range []string{"man", "lexgrog"} {
		deploytest.Tool(t, program, "man-db")
	}
	cmd := exec.Command("man", "--warnings", "--local-file", share+page)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MANWIDTH=80")
	var problems strings.Builder
	cmd.Stderr = &problems
	text, err := cmd.Output()
	if err != nil || problems.Len() > 0 {
		t.Errorf("%s: %v\n%s", cmd, err, &problems)
	}
	for _, want := range []string{"ephemeral_port_exporter " + version + "  ", "\nNAME\n", "\n       --trace\n", "\n       --destination.limit=256\n", "\nSEE ALSO\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "build date") {
		t.Errorf("the header has all of the version:\n%s", text)
	}
	if got := deploytest.Run(t, "lexgrog", share+page); !strings.Contains(got, `"ephemeral_port_exporter - Prometheus exporter for `) {
		t.Errorf("man -k finds %s", got)
	}

	path := "PATH=" + filepath.Dir(netnstest.ProgramPath(exporterProgram)) + ":$PATH\n"
	for program, script := range map[string]string{
		"bash": `. $1/bash-completion/completions/ephemeral_port_exporter
complete -p ephemeral_port_exporter >&2
COMP_WORDS=(ephemeral_port_exporter --web.tel) COMP_CWORD=1
_ephemeral_port_exporter_bash_autocomplete
echo "${COMPREPLY[@]}"`,
		// The first call loads the function. Outside of the editor, zsh has no compadd.
		"zsh": `fpath=($1/zsh/site-functions)
autoload -Uz _ephemeral_port_exporter
compadd() { print -r -- ${(M)matches:#--web.tel*} }
typeset -A compstate
words=(ephemeral_port_exporter --web.tel) CURRENT=2
_ephemeral_port_exporter`,
	} {
		if got, err := exec.Command(deploytest.Tool(t, program, program), "-c", path+script, program, share).Output(); err != nil || string(got) != "--web.telemetry-path\n" {
			t.Errorf("%s completes %q, %v", program, got, err)
		}
	}
	if first, _, _ := strings.Cut(deploytest.Read(t, share+"/zsh/site-functions/_ephemeral_port_exporter"), "\n"); first != "#compdef ephemeral_port_exporter" {
		t.Errorf("zsh does not load a completion that begins with %q", first)
	}
}

// testPackageFiles checks where packages have the manual, and that the links of the documents lead to documents of the
// package.
func testPackageFiles(t *testing.T, folder string) {
	const bash, man = "/usr/share/bash-completion/completions/ephemeral_port_exporter", "/usr/share/man/man1/ephemeral_port_exporter.1.gz"
	for pattern, tt := range map[string]struct{ list, zsh string }{
		"*_amd64.deb":  {"dpkg-deb --fsys-tarfile $1 | tar t | sed 's/^[.]//'", "/usr/share/zsh/vendor-completions/_ephemeral_port_exporter"},
		"*.x86_64.rpm": {"rpm -qlp $1", "/usr/share/zsh/site-functions/_ephemeral_port_exporter"},
	} {
		deploytest.Tool(t, "rpm", "rpm")
		packages, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil || len(packages) != 1 {
			t.Fatalf("%s: %q, %v", pattern, packages, err)
		}
		files := strings.Fields(deploytest.Run(t, "bash", "-c", tt.list, "list", packages[0]))
		for _, want := range []string{bash, man, tt.zsh} {
			if !slices.Contains(files, want) {
				t.Errorf("%s has no %s", pattern, want)
			}
		}
		if n := len(slices.DeleteFunc(slices.Clone(files), func(f string) bool { return !strings.Contains(f, "/zsh/") || strings.HasSuffix(f, "/") })); n != 1 {
			t.Errorf("%s has %d files for zsh", pattern, n)
		}

		const doc = "/usr/share/doc/ephemeral-port-exporter"
		documents := 0
		for _, file := range files {
			if filepath.Ext(file) != ".md" {
				continue
			}
			documents++
			source := strings.Replace(strings.TrimPrefix(file, doc+"/"), "README.md", "../README.md", 1)
			for _, m := range regexp.MustCompile(`\]\(([^)#]+)`).FindAllStringSubmatch(deploytest.Read(t, source), -1) {
				target := filepath.Join(filepath.Dir(file), strings.TrimPrefix(m[1], "deploy/"))
				if !strings.HasPrefix(m[1], "https://") && !slices.Contains(files, target) {
					t.Errorf("%s: %s links to %s, which is not there", pattern, file, m[1])
				}
			}
		}
		if documents < 14 {
			t.Errorf("%s has %d documents", pattern, documents)
		}
	}
}

// checkBinary checks that a binary is static and built as the Dockerfile does.
func checkBinary(t *testing.T, binary []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != machine {
		t.Errorf("binary for %v, want %v", f.Machine, machine)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("the binary needs a dynamic loader")
	}
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if settings["CGO_ENABLED"] != "0" || settings["-trimpath"] != "true" {
		t.Errorf("built with %v", info.Settings)
	}
	if f.Section(".symtab") != nil {
		t.Error("the binary has symbols, that of the Dockerfile has not")
	}
}

// checkMaterials compares a bill of materials with what the binary contains.
func checkMaterials(t *testing.T, path, version string, binary []byte) {
	t.Helper()
	type component struct{ Name, Version, Purl string }
	var bom struct {
		BomFormat string
		Metadata  struct {
			Component struct {
				component
				Hashes []struct{ Content string }
			}
		}
		Components []component
	}
	if err := json.Unmarshal([]byte(deploytest.Read(t, path)), &bom); err != nil {
		t.Fatal(err)
	}
	exporter := bom.Metadata.Component
	if bom.BomFormat != "CycloneDX" || exporter.Name != exporterProgram || exporter.Version != version ||
		len(exporter.Hashes) != 1 || exporter.Hashes[0].Content != fmt.Sprintf("%x", sha256.Sum256(binary)) {
		t.Errorf("%s: %s of %+v", path, bom.BomFormat, exporter)
	}
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		t.Fatal(err)
	}
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	want := []component{{"stdlib", goVersion, "pkg:golang/stdlib@" + goVersion}}
	for _, m := range info.Deps {
		want = append(want, component{m.Path, m.Version, "pkg:golang/" + m.Path + "@" + m.Version})
	}
	if diff := cmp.Diff(want, bom.Components); diff != "" || len(want) < 10 {
		t.Errorf("%s (-binary +document):\n%s", path, diff)
	}
}

// A layout is the files of an OCI image layout.
type layout map[string][]byte

// A descriptor is the part of a descriptor of an OCI image layout that the tests read.
type descriptor struct {
	MediaType   string
	Digest      string
	Platform    struct{ OS, Architecture string }
	Annotations map[string]string
}

// blob returns the path of what a descriptor describes.
func (d descriptor) blob() string { return strings.Replace(d.Digest, "sha256:", "blobs/sha256/", 1) }

// A manifest is what an image, or a chart, consists of.
type manifest struct {
	Config descriptor
	Layers []descriptor
}

// unpackLayout returns the files of an archive with an image layout, and the only descriptor in its index.
func unpackLayout(t *testing.T, archive string) (layout, descriptor) {
	t.Helper()
	l := layout(untar(t, "cat", archive))
	var index struct{ Manifests []descriptor }
	l.read(t, "index.json", &index)
	if len(index.Manifests) != 1 || string(l["oci-layout"]) == "" {
		t.Fatalf("%s has %d images, want one", archive, len(index.Manifests))
	}
	return l, index.Manifests[0]
}

// read decodes a file, and compares a blob with its name.
func (l layout) read(t *testing.T, name string, into any) {
	t.Helper()
	content, ok := l[name]
	if !ok {
		t.Fatalf("the image layout has no %s", name)
	}
	if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest != fmt.Sprintf("%x", sha256.Sum256(content)) {
		t.Errorf("%s has another digest", name)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// testReleaseImage compares the images with the Dockerfile, and checks the names by which container runtimes know them.
func testReleaseImage(t *testing.T, folder, version string) {
	names := map[string]string{
		"io.containerd.image.name":          "docker.io/library/ephemeral_port_exporter:" + version,
		"org.opencontainers.image.ref.name": version,
	}
	all, top := unpackLayout(t, filepath.Join(folder, "ephemeral_port_exporter-"+version+".oci.tar"))
	if diff := cmp.Diff(names, top.Annotations); diff != "" {
		t.Errorf("name of the image (-want +got):\n%s", diff)
	}
	var index struct{ Manifests []descriptor }
	all.read(t, top.blob(), &index)
	var platforms []string
	for _, d := range index.Manifests {
		platforms = append(platforms, d.Platform.OS+"/"+d.Platform.Architecture)
		base := "ephemeral_port_exporter-" + version + ".linux-" + d.Platform.Architecture
		checkImage(t, folder, base, version, all, d)

		// The same image alone, also for docker load.
		alone, top := unpackLayout(t, filepath.Join(folder, base+".image.tar"))
		if diff := cmp.Diff(descriptor{d.MediaType, d.Digest, d.Platform, names}, top); diff != "" {
			t.Errorf("%s.image.tar (-want +got):\n%s", base, diff)
		}
		var m manifest
		alone.read(t, top.blob(), &m)
		type dockerImage struct {
			Config           string
			RepoTags, Layers []string
		}
		var docker []dockerImage
		alone.read(t, "manifest.json", &docker)
		if diff := cmp.Diff([]dockerImage{{m.Config.blob(), []string{"ephemeral_port_exporter:" + version}, []string{m.Layers[0].blob()}}}, docker); diff != "" {
			t.Errorf("%s: manifest.json (-want +got):\n%s", base, diff)
		}
		for _, blob := range []string{m.Config.blob(), m.Layers[0].blob()} {
			if !bytes.Equal(alone[blob], all[blob]) {
				t.Errorf("%s: another %s", base, blob)
			}
		}
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, platforms); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
}

// checkImage compares an image with the Dockerfile, and the file in it with the binary of the archive.
func checkImage(t *testing.T, folder, base, version string, l layout, d descriptor) {
	t.Helper()
	want := dockerfile(t, version)
	var m manifest
	l.read(t, d.blob(), &m)
	var config struct {
		Architecture, OS string
		Config           imageConfig
	}
	l.read(t, m.Config.blob(), &config)
	if config.OS != d.Platform.OS || config.Architecture != d.Platform.Architecture {
		t.Errorf("%s has a configuration for %s/%s", base, config.OS, config.Architecture)
	}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("image (-Dockerfile +release):\n%s", diff)
	}
	layer := filepath.Join(t.TempDir(), "layer.tar.gz")
	if len(m.Layers) != 1 {
		t.Fatalf("%d layers", len(m.Layers))
	}
	if err := os.WriteFile(layer, l[m.Layers[0].blob()], 0o644); err != nil {
		t.Fatal(err)
	}
	content := untar(t, "gzip", layer, "-d")
	binary := untar(t, "gzip", filepath.Join(folder, base+".tar.gz"), "-d")[base+"/"+exporterProgram]
	if len(content) != 1 || !bytes.Equal(content[strings.TrimPrefix(want.Entrypoint[0], "/")], binary) {
		t.Errorf("%s: %d files, want the binary alone", base, len(content))
	}
}

// testReleaseChart compares the chart with that of the checkout, by the tests of the chart, and checks its form for registries.
func testReleaseChart(t *testing.T, folder, version string) {
	archive := filepath.Join(folder, "ephemeral-port-exporter-"+version+".tgz")
	untar(t, "gzip", archive, "-d") // checks the times
	cmd := exec.Command("go", "test", "-count=1", "-buildvcs=false", "-run=^TestPackage$", "-v", ".")
	cmd.Dir = "helm"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "CHART="+archive)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestPackage") {
		t.Errorf("%v in %s: %v\n%s", cmd, cmd.Dir, err, out)
	}

	l, top := unpackLayout(t, filepath.Join(folder, "ephemeral-port-exporter-"+version+".chart.oci.tar"))
	if got := top.Annotations["org.opencontainers.image.ref.name"]; got != version {
		t.Errorf("the chart has the tag %q", got)
	}
	var m manifest
	l.read(t, top.blob(), &m)
	if m.Config.MediaType != "application/vnd.cncf.helm.config.v1+json" || len(m.Layers) != 1 ||
		m.Layers[0].MediaType != "application/vnd.cncf.helm.chart.content.v1.tar+gzip" || string(l[m.Layers[0].blob()]) != deploytest.Read(t, archive) {
		t.Errorf("no artifact of Helm: %+v", m)
	}
	var metadata struct{ Name, Version, AppVersion, KubeVersion, APIVersion string }
	l.read(t, m.Config.blob(), &metadata)
	if metadata.Name != "ephemeral-port-exporter" || metadata.Version != version || metadata.AppVersion != version || metadata.APIVersion != "v2" || metadata.KubeVersion == "" {
		t.Errorf("metadata of the chart: %+v", metadata)
	}
}

// An imageConfig says how a container runtime runs an image.
type imageConfig struct {
	User         string
	ExposedPorts map[string]struct{}
	Entrypoint   []string
	Cmd          []string
	Env          []string
	Labels       map[string]string
}

// dockerfile returns the configuration of the image that the Dockerfile makes.
func dockerfile(t *testing.T, version string) imageConfig {
	t.Helper()
	_, text, ok := strings.Cut(deploytest.Read(t, "../Dockerfile"), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the image of the Dockerfile is not from scratch")
	}
	text = strings.NewReplacer("\\\n", " ", "$VERSION", version, "$REVISION", testRevision).Replace(text)
	config := imageConfig{ExposedPorts: map[string]struct{}{}, Labels: map[string]string{}}
	for line := range strings.Lines(text) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch instruction {
		case "USER":
			config.User = rest
		case "EXPOSE":
			config.ExposedPorts[rest+"/tcp"] = struct{}{}
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(rest), &config.Entrypoint); err != nil {
				t.Fatal(err)
			}
		case "LABEL":
			for _, m := range regexp.MustCompile(`(\S+)="([^"]*)"`).FindAllStringSubmatch(rest, -1) {
				config.Labels[m[1]] = m[2]
			}
		case "ARG", "COPY":
		default:
			t.Errorf("Dockerfile: unexpected %q", line)
		}
	}
	return config
}
