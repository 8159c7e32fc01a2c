package main

import (
	"bytes"
	"fmt"
	"maps"
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
	contents, err := r.contentsOf(b, dir)
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
func (r release) contentsOf(b binary, dir string) (files.Contents, error) {
	var contents files.Contents
	add := func(content []byte, destination string, mode os.FileMode, as files.Content) error {
		as.Source, as.Destination = filepath.Join(dir, fmt.Sprint(len(contents))), destination
		as.FileInfo = &files.ContentFileInfo{Mode: mode}
		contents = append(contents, &as)
		return os.WriteFile(as.Source, content, mode)
	}
	if err := add(b.content, packageDir+name, 0o755, files.Content{}); err != nil {
		return nil, err
	}
	for _, file := range units {
		content, err := document(file)
		if err != nil {
			return nil, err
		}
		destination, as := path.Join("/usr/lib/systemd/system", path.Base(file)), files.Content{}
		if path.Ext(file) == ".default" {
			destination, as.Type = "/etc/default/"+name, files.TypeConfigNoReplace
		}
		if err := add(content, destination, 0o644, as); err != nil {
			return nil, err
		}
	}
	for _, file := range slices.Sorted(maps.Keys(r.manual)) {
		content, as := r.manual[file], files.Content{}
		if file == zshFile {
			if err := add(content, path.Join("/usr/share", debianZshFile), 0o644, files.Content{Packager: "deb"}); err != nil {
				return nil, err
			}
			as.Packager = "rpm"
		}
		if err := add(content, path.Join("/usr/share", file), 0o644, as); err != nil {
			return nil, err
		}
	}
	// An rpm removes the directories that it lists.
	const doc = "/usr/share/doc/" + packageName
	var dirs []string
	for _, file := range documents {
		content, err := document(file)
		if err != nil {
			return nil, err
		}
		// The documents of deploy/ stand beside the README.
		file = path.Join(doc, strings.TrimPrefix(file, "../"))
		dirs = append(dirs, path.Dir(file))
		if err := add(content, file, 0o644, files.Content{}); err != nil {
			return nil, err
		}
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		contents = append(contents, &files.Content{Destination: dir, Type: files.TypeDir})
	}
	return contents, nil
}

// document returns a file of deploy/ with the paths of packages.
func document(file string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(source, "deploy", file))
	switch {
	case file == readme:
		content = bytes.ReplaceAll(content, []byte("deploy/"), nil)
	case strings.HasPrefix(file, "systemd/"):
		content = bytes.ReplaceAll(content, []byte(checkoutDir+name), []byte(packageDir+name))
	}
	return content, err
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
