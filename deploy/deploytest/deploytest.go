// Package deploytest has what the tests of the folders of deploy share.
package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v2"
)

// Tool returns the path of a program of a Debian package. If it is not installed, the test is
// skipped, except in CI.
func Tool(t *testing.T, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("no %s: install the package %s", program, debianPackage)
		}
		t.Fatal(err)
	}
	return path
}

// Run runs a program that must succeed, and returns its output.
func Run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// Read returns the content of a file, whose path is relative to the folder of the tests.
func Read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Write writes a file for a program and returns its path.
func Write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Unmarshal decodes a YAML file, whose path is relative to the folder of the tests.
func Unmarshal(t *testing.T, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(Read(t, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
