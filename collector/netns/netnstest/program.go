//go:build linux

package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// envPrograms names the directory of the programs that Main built. It is set from the start where somebody
// else built them, for a machine without go(1).
const envPrograms = "NETNSTEST_PROGRAMS"

// A Program is built for the tests of a package.
type Program struct {
	Name string   // of the file
	Args []string // of go(1): "build" or "test", its flags, and the package
	Dir  string   // working directory of go, if not that of the tests
}

// Download has go(1) download a module with its version. The tests themselves have no network.
func Download(module string) error {
	if os.Getenv(envInside) != "" {
		return nil
	}
	cmd := exec.Command("go", "mod", "download", module)
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("download %s: %w: %s", module, err, out)
	}
	return nil
}

// ProgramPath returns the path of the program with that name. Every user may run it.
func ProgramPath(name string) string { return filepath.Join(os.Getenv(envPrograms), name) }

// build builds the programs in a new temporary directory. The caller removes it, also after an
// error.
func build(programs []Program) (dir string, err error) {
	if len(programs) == 0 {
		return "", nil
	}
	if dir, err = os.MkdirTemp("", "netnstest-"); err != nil {
		return "", err
	}
	for _, p := range programs {
		path := filepath.Join(dir, p.Name)
		// git refuses to read a checkout of another user, and go would fail because of that.
		cmd := exec.Command("go", slices.Concat(p.Args[:1], []string{"-buildvcs=false", "-o", path}, p.Args[1:])...)
		cmd.Dir = p.Dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the image
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: go %q: %w: %s", p.Name, p.Args, err, out)
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return dir, err
		}
	}
	return dir, os.Chmod(dir, 0o755)
}
