//go:build linux

package scan

import "testing"

// TestVersion compares releases with one version.
func TestVersion(t *testing.T) {
	for release, before := range map[string]bool{
		"6.18.44-lqx": false, "6.5.0": false, "6.5-rc1": false, "7.0.0": false, "10.1": false,
		"": true, "7": true, "linux": true, ".5": true, "6.x": true, // as old as can be
		"6.4.16": true, "6.1.0-18-amd64": true, "5.15.0": true, "4.18.0-553.el8_10.x86_64": true, "4.19": true,
	} {
		if v := parseVersion(release); v.before(6, 5) != before {
			t.Errorf("%q: got %v, before 6.5: %v", release, v, v.before(6, 5))
		}
	}
}
