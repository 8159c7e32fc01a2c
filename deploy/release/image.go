package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// repository is the name of the image without a registry, which container runtimes take for this one. It is the default of
// the chart.
const repository = "docker.io/library/" + name

// images writes an archive with the images for all architectures, for registries, and one for each of them, which also
// older container runtimes load. They are what the Dockerfile makes.
func (r release) images(binaries []binary) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, b := range binaries {
		image, err := r.imageOf(b)
		if err == nil {
			err = r.archiveImage(b, image)
		}
		if err != nil {
			return fmt.Errorf("image for %s: %w", b.arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: b.arch}},
		})
	}
	return r.archiveLayout(fmt.Sprintf("%s-%s.oci.tar", name, r.version), nil, func(l layout.Path) error {
		return l.AppendIndex(index, layout.WithAnnotations(r.imageName()))
	})
}

// imageName returns the annotations by which container runtimes name an image.
func (r release) imageName() map[string]string {
	return map[string]string{
		"io.containerd.image.name":          repository + ":" + r.version, // containerd, Podman, Docker since 29
		"org.opencontainers.image.ref.name": r.version,
	}
}

// archiveImage writes the image for one architecture, as docker save does since version 25: an OCI image layout
// with the manifest.json that docker load of older versions needs.
func (r release) archiveImage(b binary, image v1.Image) error {
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	blob := func(d v1.Descriptor) string { return path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex) }
	docker := tarball.Descriptor{Config: blob(manifest.Config), RepoTags: []string{name + ":" + r.version}}
	for _, l := range manifest.Layers {
		docker.Layers = append(docker.Layers, blob(l))
	}
	content, err := json.Marshal(tarball.Manifest{docker})
	if err != nil {
		return err
	}
	return r.archiveLayout(r.base(b)+".image.tar", map[string][]byte{"manifest.json": content}, func(l layout.Path) error {
		return l.AppendImage(image, layout.WithAnnotations(r.imageName()), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: b.arch}))
	})
}

// archiveLayout writes a tar of an OCI image layout with what is appended to it, and of further files.
//
// See https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
func (r release) archiveLayout(file string, further map[string][]byte, appendTo func(layout.Path) error) error {
	dir, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := appendTo(l); err != nil {
		return err
	}
	contents := map[string][]byte{}
	maps.Copy(contents, further)
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		file, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		contents[file], err = os.ReadFile(path)
		return err
	}); err != nil {
		return err
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	if err := errors.Join(r.addAll(archive, "", contents), archive.Close()); err != nil {
		return err
	}
	return r.write(file, out.Bytes())
}

// imageOf returns the image for one architecture.
func (r release) imageOf(b binary) (v1.Image, error) {
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	if err := errors.Join(r.add(archive, name, 0o755, b.content), archive.Close()); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: r.time}, CreatedBy: ".ci/release"}})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", b.arch, v1.Time{Time: r.time}
	config.Config = v1.Config{
		Entrypoint:   []string{"/" + name},
		User:         "65534:65534",
		ExposedPorts: map[string]struct{}{"10149/tcp": {}},
		Labels: map[string]string{
			"org.opencontainers.image.title":       name,
			"org.opencontainers.image.description": description,
			"org.opencontainers.image.version":     r.version,
			"org.opencontainers.image.revision":    r.revision,
		},
	}
	return mutate.ConfigFile(image, config)
}
