// Command release makes the files of a release: archives, packages, container images, the Helm chart,
// lists of what the binaries contain, and checksums. It is run by .ci/release, in the directory of this file.
//
// The same source, version, revision, time and Go toolchain give the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	name        = "ephemeral_port_exporter"
	description = "Prometheus exporter for ephemeral-port exhaustion" // as in the Dockerfile
)

// source is the root of the repository.
const source = "../.."

// architectures are those of the binaries, in the words of Go.
var architectures = []string{"amd64", "arm64"}

// readme is the README, seen from deploy/.
const readme = "../README.md"

// documents are the files that an operator copies or reads, seen from deploy/. Archives and packages have them.
var documents = []string{
	readme,
	"CHANGELOG.md",
	"alertmanager/alertmanager.yml",
	"docs/alerts.md",
	"docs/cost.md",
	"docs/development.md",
	"docs/growth.svg",
	"docs/install.md",
	"docs/kernel-facts.md",
	"docs/kernels.md",
	"docs/metrics.md",
	"docs/model.md",
	"docs/modes.md",
	"docs/programs.md",
	"docs/reference.md",
	"docs/security.md",
	"grafana/dashboard.json",
	"grafana/host.png",
	"grafana/incident.png",
	"grafana/nat.png",
	"prometheus/prometheus.yml",
	"prometheus/rules.yml",
	"runbook.md",
	"seccomp/ephemeral_port_exporter.json",
	"status.png",
	"systemd/all-namespaces.conf",
	"systemd/trace.conf",
	"systemd/exact.conf",
	"systemd/snat.conf",
	"systemd/tls.conf",
}

// units are the files of deploy/ that systemd reads.
var units = []string{
	"systemd/ephemeral_port_exporter.default",
	"systemd/ephemeral_port_exporter.service",
	"systemd/ephemeral_port_exporter.socket",
}

// A release is what the files are made from.
type release struct {
	folder   string
	version  string
	revision string
	time     time.Time // of each file

	manual map[string][]byte // man page and completions, by their paths below /usr/share
}

// A binary is the exporter for one architecture.
type binary struct {
	arch    string
	content []byte
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("release: ")
	r := release{}
	flag.StringVar(&r.version, "version", "", "version, such as 1.2.3")
	flag.StringVar(&r.revision, "revision", "", "commit")
	seconds := flag.Int64("time", 0, "time of each file, in seconds since 1970")
	flag.Parse()
	r.folder, r.time = flag.Arg(0), time.Unix(*seconds, 0).UTC()
	if flag.NArg() != 1 || r.version == "" || r.revision == "" || *seconds == 0 {
		log.Fatal("want -version, -revision, -time and a folder")
	}
	if err := r.make(); err != nil {
		log.Fatal(err)
	}
}

// make makes all files.
func (r release) make() error {
	if err := os.MkdirAll(r.folder, 0o755); err != nil {
		return err
	}
	if old, err := os.ReadDir(r.folder); err != nil {
		return err
	} else if len(old) > 0 {
		return fmt.Errorf("%s has files: name a new folder", r.folder)
	}
	var err error
	if r.manual, err = r.makeManual(); err != nil {
		return err
	}
	var binaries []binary
	for _, arch := range architectures {
		b, err := r.build(arch)
		if err != nil {
			return err
		}
		binaries = append(binaries, b)
		if err := r.archive(b); err != nil {
			return err
		}
		if err := r.packages(b); err != nil {
			return err
		}
		if err := r.materials(b); err != nil {
			return err
		}
	}
	if err := errors.Join(r.images(binaries), r.chart()); err != nil {
		return err
	}
	return r.checksums()
}

// build builds the exporter as the Dockerfile does. The result does not depend on where.
func (r release) build(arch string) (binary, error) {
	dir, err := os.MkdirTemp("", "release-")
	if err != nil {
		return binary{}, err
	}
	defer os.RemoveAll(dir)
	const version = "-X github.com/prometheus/common/version."
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, name),
		"-ldflags", "-s -w "+version+"Version="+r.version+" "+version+"Revision="+r.revision+" "+version+"BuildDate="+r.time.Format(time.RFC3339),
		"./cmd/"+name)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return binary{}, fmt.Errorf("%s for %s: %w\n%s", cmd, arch, err, out)
	}
	content, err := os.ReadFile(filepath.Join(dir, name))
	return binary{arch, content}, err
}

// archive writes a tar.gz of the binary, the documents and the units, with the paths of a checkout, so
// that the links and the commands of the documents hold. What belongs in /usr/local/share is in share.
func (r release) archive(b binary) error {
	base := r.base(b)
	contents := map[string][]byte{}
	for _, file := range slices.Concat(documents, units) {
		content, err := os.ReadFile(filepath.Join(source, "deploy", file))
		if err != nil {
			return err
		}
		contents[path.Join("deploy", file)] = content
	}
	for file, content := range r.manual {
		contents[path.Join("share", file)] = content
	}

	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	if err := r.add(archive, path.Join(base, name), 0o755, b.content); err != nil {
		return err
	}
	if err := errors.Join(r.addAll(archive, base, contents), archive.Close(), zip.Close()); err != nil {
		return err
	}
	return r.write(base+".tar.gz", out.Bytes())
}

// base returns the start of the names of files for one architecture.
func (r release) base(b binary) string {
	return fmt.Sprintf("%s-%s.linux-%s", name, r.version, b.arch)
}

// add adds a file to an archive.
func (r release) add(archive *tar.Writer, file string, mode int64, content []byte) error {
	header := &tar.Header{Name: file, Mode: mode, Size: int64(len(content)), ModTime: r.time, Format: tar.FormatUSTAR}
	if err := archive.WriteHeader(header); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	_, err := archive.Write(content)
	return err
}

// addAll adds files by their paths below a directory.
func (r release) addAll(archive *tar.Writer, dir string, contents map[string][]byte) error {
	for _, file := range slices.Sorted(maps.Keys(contents)) {
		if err := r.add(archive, path.Join(dir, file), 0o644, contents[file]); err != nil {
			return err
		}
	}
	return nil
}

// write writes a file of the release.
func (r release) write(file string, content []byte) error {
	return os.WriteFile(filepath.Join(r.folder, file), content, 0o644)
}

// checksums writes SHA256SUMS, for sha256sum --check.
func (r release) checksums() error {
	files, err := os.ReadDir(r.folder)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(r.folder, file.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), file.Name())
	}
	return r.write("SHA256SUMS", []byte(sums.String()))
}
