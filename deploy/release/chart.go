package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v3"
)

// Media types of charts in registries, see https://helm.sh/docs/topics/registries/.
const (
	chartConfig  = types.MediaType("application/vnd.cncf.helm.config.v1+json")
	chartContent = types.MediaType("application/vnd.cncf.helm.chart.content.v1.tar+gzip")
)

// chartFiles are patterns of the files of the chart, seen from deploy/helm.
var chartFiles = []string{".helmignore", "Chart.yaml", "README.md", "files/*", "templates/*", "values.schema.json", "values.yaml"}

// chart writes the Helm chart as helm package does, and a tar of an OCI image layout with it, as helm push stores it in
// a registry. Its version, and that of the image which it runs, are those of the release.
func (r release) chart() error {
	contents := map[string][]byte{}
	for _, pattern := range chartFiles {
		dir := filepath.Join(source, "deploy/helm")
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			file, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			if contents[file], err = os.ReadFile(path); err != nil {
				return err
			}
		}
	}
	about := regexp.MustCompile(`(?m)^(version|appVersion): .*$`).ReplaceAll(contents["Chart.yaml"], []byte("${1}: "+r.version))
	contents["Chart.yaml"] = about

	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	if err := errors.Join(r.addAll(archive, packageName, contents), archive.Close(), zip.Close()); err != nil {
		return err
	}
	base := packageName + "-" + r.version
	if err := r.write(base+".tgz", out.Bytes()); err != nil {
		return err
	}
	var metadata map[string]string
	if err := yaml.Unmarshal(about, &metadata); err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	config, err := json.Marshal(metadata)
	if err != nil {
		return err
	}
	artifact, err := partial.CompressedToImage(chartArtifact{config, static.NewLayer(out.Bytes(), chartContent)})
	if err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	return r.archiveLayout(base+".chart.oci.tar", nil, func(l layout.Path) error {
		return l.AppendImage(artifact, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": r.version}))
	})
}

// A chartArtifact is a chart as registries have it: one layer, and the metadata of Chart.yaml as configuration.
type chartArtifact struct {
	config []byte
	layer  v1.Layer
}

func (chartArtifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (a chartArtifact) RawConfigFile() ([]byte, error) { return a.config, nil }

func (a chartArtifact) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) { return a.layer, nil }

func (a chartArtifact) RawManifest() ([]byte, error) {
	config, err := partial.Descriptor(static.NewLayer(a.config, chartConfig))
	if err != nil {
		return nil, err
	}
	content, err := partial.Descriptor(a.layer)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: *config, Layers: []v1.Descriptor{*content}})
}
