//go:build linux

package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestDockerfile runs the build command of the image for each architecture. It checks that the image
// has a static binary, no privileges and the default port.
func TestDockerfile(t *testing.T) {
	b, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	dockerfile := string(b)
	for _, want := range []string{
		"\nFROM scratch\n", "\nUSER 65534:65534\n", "\nEXPOSE " + strings.TrimPrefix(defaultAddress, ":") + "\n",
		"\nENTRYPOINT [\"/" + name + "\"]\n", "org.opencontainers.image.version=",
	} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("no %q in the Dockerfile", want)
		}
	}

	var build string
	for line := range strings.Lines(dockerfile) {
		if command, ok := strings.CutPrefix(line, "RUN CGO_ENABLED=0 "); ok {
			build = "CGO_ENABLED=0 " + command
		}
	}
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(arch, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), name)
			cmd := exec.Command("sh", "-c", strings.Replace(build, "/out/"+name, out, 1))
			cmd.Dir = "../.."
			// The build has no .git, see .dockerignore.
			cmd.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -buildvcs=false", "TARGETOS=linux", "TARGETARCH="+arch, "VERSION=1.2.3", "REVISION=abc")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", build, err, out)
			}
			f, err := elf.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if f.Machine != machine {
				t.Errorf("binary for %v, want %v", f.Machine, machine)
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_INTERP {
					t.Error("the binary needs a dynamic loader")
				}
			}
			if arch != runtime.GOARCH {
				return
			}
			version, err := exec.Command(out, "--version").CombinedOutput()
			if err != nil || !strings.Contains(string(version), "version 1.2.3") || !strings.Contains(string(version), "revision: abc") {
				t.Errorf("--version: %v: %s", err, version)
			}
		})
	}
}
