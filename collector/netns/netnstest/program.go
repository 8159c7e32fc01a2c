//go:build linux

package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// envPrograms is the folder of the programs that Main built.
const envPrograms = "NETNSTEST_PROGRAMS"

// A Program is one that the tests of a package run.
type Program struct {
	Name string   // of the file
	Args []string // of go(1), which writes the file: "build" or "test -c", and the package
	Dir  string   // where to call go, if not in the folder of the tests
}

// ProgramPath returns where the program of that name lies. Every user may run it.
func ProgramPath(name string) string { return filepath.Join(os.Getenv(envPrograms), name) }

// build makes a temporary folder with the programs, which the caller removes.
func build(programs []Program) (folder string, err error) {
	if len(programs) == 0 {
		return "", nil
	}
	if folder, err = os.MkdirTemp("", "netnstest-"); err != nil {
		return "", err
	}
	for _, p := range programs {
		path := filepath.Join(folder, p.Name)
		// git tells nothing about a checkout of another user, which go takes for an error.
		cmd := exec.Command("go", slices.Concat(p.Args[:1], []string{"-buildvcs=false", "-o", path}, p.Args[1:])...)
		cmd.Dir = p.Dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return folder, fmt.Errorf("build %s: go %q: %w: %s", p.Name, p.Args, err, out)
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return folder, err
		}
	}
	return folder, os.Chmod(folder, 0o755)
}
