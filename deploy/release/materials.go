package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
)

// materials writes the software bill of materials of a binary: the modules that the Go linker says it
// contains, and the standard library.
func (r release) materials(b binary) error {
	info, err := buildinfo.Read(bytes.NewReader(b.content))
	if err != nil {
		return fmt.Errorf("bill of materials: %w", err)
	}
	component := func(kind cyclonedx.ComponentType, module, version string) cyclonedx.Component {
		url := "pkg:golang/" + module + "@" + version
		return cyclonedx.Component{BOMRef: url, Type: kind, Name: module, Version: version, PackageURL: url}
	}
	exporter := component(cyclonedx.ComponentTypeApplication, name, r.version)
	exporter.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sha256.Sum256(b.content))}}
	exporter.Properties = &[]cyclonedx.Property{{Name: "revision", Value: r.revision}, {Name: "platform", Value: "linux/" + b.arch}}

	parts := []cyclonedx.Component{component(cyclonedx.ComponentTypeLibrary, "stdlib", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		parts = append(parts, component(cyclonedx.ComponentTypeLibrary, module.Path, module.Version))
	}
	var references []string
	for _, part := range parts {
		references = append(references, part.BOMRef)
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Timestamp: r.time.Format(time.RFC3339), Component: &exporter}
	bom.Components = &parts
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: exporter.BOMRef, Dependencies: &references}}

	var out bytes.Buffer
	if err := cyclonedx.NewBOMEncoder(&out, cyclonedx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cyclonedx.SpecVersion1_6); err != nil {
		return fmt.Errorf("bill of materials: %w", err)
	}
	return r.write(r.base(b)+".cdx.json", out.Bytes())
}
