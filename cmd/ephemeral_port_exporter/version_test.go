//go:build linux

package main

import (
	"encoding/json"
	"regexp"
	"testing"
)

// TestVersion checks that a binary that was built without -ldflags and outside of a checkout says so
// wherever it names its version: nothing is empty.
func TestVersion(t *testing.T) {
	const address = "127.0.0.1:10146"
	const version, revision = `\(devel\)`, "unknown"
	e := start(t, command(t, "--web.listen-address="+address), "http://"+address)
	printed, err := command(t, "--version").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	_, metrics := e.get(t, "/metrics")
	_, page := e.get(t, "/?format=json")
	var status struct{ Version, Revision string }
	if err := json.Unmarshal([]byte(page), &status); err != nil {
		t.Fatal(err)
	}
	const info = `\(version=` + version + `, branch=unknown, revision=` + revision + `\)`
	for _, tt := range []struct{ where, text, want string }{
		{"--version", string(printed), "^" + name + ", version " + version + ` \(branch: unknown, revision: ` + revision + `\)\n  build user:       unknown\n  build date:       unknown\n`},
		{"log", e.log.String(), `version="` + info + `"`},
		{"log", e.log.String(), `user=unknown, date=unknown,`},
		{"build_info", metrics, `\n` + name + `_build_info\{branch="unknown",[^\n]*revision="` + revision + `",[^\n]*version="` + version + `"\} 1\n`},
		{"status page", status.Version + " " + status.Revision, "^" + version + " " + revision + "$"},
	} {
		if !regexp.MustCompile(tt.want).MatchString(tt.text) {
			t.Errorf("%s: no %s in\n%s", tt.where, tt.want, tt.text)
		}
	}
}
