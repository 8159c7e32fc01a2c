package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers the format
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // registers the format
)

// packageName has no underscore, which names of Debian packages must not have.
const packageName = "ephemeral-port-exporter"

// In a checkout, the binary is installed into checkoutDir. Packages have it in packageDir.
const (
	checkoutDir = "/usr/local/bin/"
	packageDir  = "/usr/bin/"
)

// packages writes a deb and an rpm.
func (r release) packages(b binary) error {
	dir, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	contents, err := contentsOf(b, dir)
	if err != nil {
		return err
	}
	for format, scripts := range map[string]nfpm.Scripts{
		"deb": {PostInstall: "scripts/deb.postinst", PreRemove: "scripts/deb.prerm", PostRemove: "scripts/deb.postrm"},
		"rpm": {PostInstall: "scripts/rpm.post", PreRemove: "scripts/rpm.preun", PostRemove: "scripts/rpm.postun"},
	} {
		if err := r.pack(format, nfpm.Info{
			Name: packageName, Arch: b.arch, Platform: "linux", Version: r.version, MTime: r.time,
			Section: "net", Priority: "optional", Maintainer: "ephemeral_port_exporter maintainers <maintainers@example.com>",
			Description: description + "\nOn each scrape, it shows for every destination how close connect() is to failing\nbecause no port is free. It also covers UDP and, on a gateway, source NAT.",
			Overridables: nfpm.Overridables{
				Contents: contents, Scripts: scripts,
				RPM: nfpm.RPM{Summary: description, BuildHost: "localhost"},
			},
		}); err != nil {
			return fmt.Errorf("%s for %s: %w", format, b.arch, err)
		}
	}
	return nil
}

// contentsOf returns the files of a package. It prepares them in a directory.
func contentsOf(b binary, dir string) (files.Contents, error) {
	program := filepath.Join(dir, name)
	if err := os.WriteFile(program, b.content, 0o755); err != nil {
		return nil, err
	}
	contents := files.Contents{{Source: program, Destination: packageDir + name, FileInfo: &files.ContentFileInfo{Mode: 0o755}}}
	add := func(file, destination, kind string) error {
		content, err := os.ReadFile(filepath.Join(source, "deploy", file))
		if err != nil {
			return err
		}
		if strings.HasPrefix(file, "systemd/") {
			content = bytes.ReplaceAll(content, []byte(checkoutDir+name), []byte(packageDir+name))
		}
		local := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		contents = append(contents, &files.Content{Source: local, Destination: destination, Type: kind, FileInfo: &files.ContentFileInfo{Mode: 0o644}})
		return os.WriteFile(local, content, 0o644)
	}
	for _, file := range units {
		destination, kind := path.Join("/usr/lib/systemd/system", path.Base(file)), files.TypeFile
		if path.Ext(file) == ".default" {
			destination, kind = "/etc/default/"+name, files.TypeConfigNoReplace
		}
		if err := add(file, destination, kind); err != nil {
			return nil, err
		}
	}
	// An rpm removes the directories that it lists.
	const doc = "/usr/share/doc/" + packageName
	var dirs []string
	for _, file := range documents {
		dirs = append(dirs, path.Join(doc, path.Dir(file)))
		if err := add(file, path.Join(doc, file), files.TypeFile); err != nil {
			return nil, err
		}
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		contents = append(contents, &files.Content{Destination: dir, Type: files.TypeDir})
	}
	return contents, nil
}

// pack writes one package.
func (r release) pack(format string, info nfpm.Info) error {
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	packed := nfpm.WithDefaults(&info)
	if err := nfpm.PrepareForPackager(packed, format); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := packager.Package(packed, &out); err != nil {
		return err
	}
	return r.write(packager.ConventionalFileName(packed), out.Bytes())
}
