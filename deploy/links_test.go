//go:build linux

package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ephemeral_port_exporter/deploy/deploytest"
)

// TestLinks checks that the links of the documents lead to existing files and chapters, and that each block of code
// ends.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)]+)\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.+)$`)
	documents, err := filepath.Glob("docs/*.md")
	if err != nil || len(documents) == 0 {
		t.Fatalf("documents: %q, %v", documents, err)
	}
	for _, path := range append(documents, "../README.md", "runbook.md", "helm/README.md") {
		if fences := regexp.MustCompile("(?m)^ *```").FindAllString(deploytest.Read(t, path), -1); len(fences)%2 != 0 {
			t.Errorf("%s: a block of code does not begin or end", path)
		}
		links := link.FindAllStringSubmatch(deploytest.Read(t, path), -1)
		if len(links) == 0 {
			t.Errorf("%s has no links", path)
		}
		for _, m := range links {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
				continue
			}
			if anchor == "" {
				continue
			}
			found := false
			for _, h := range heading.FindAllStringSubmatch(deploytest.Read(t, target), -1) {
				found = found || anchor == strings.ToLower(strings.ReplaceAll(h[1], " ", "-"))
			}
			if !found {
				t.Errorf("%s links to %s: no such chapter", path, m[1])
			}
		}
	}
}
