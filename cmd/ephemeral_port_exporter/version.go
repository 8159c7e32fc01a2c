package main

import (
	"runtime/debug"

	"github.com/prometheus/common/version"
)

// setVersion fills in what the linker was not told by -ldflags. The version is then that of the main module:
// in a checkout, go build makes it from tag and commit, and go run and -buildvcs=false say "(devel)". The
// package version finds the revision by itself, or calls it unknown.
func setVersion() {
	if info, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = info.Main.Version
	}
	for _, s := range []*string{&version.Version, &version.Branch, &version.BuildUser, &version.BuildDate} {
		if *s == "" {
			*s = "unknown"
		}
	}
}
