package status

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"ephemeral_port_exporter/deploy"
)

// getDocument returns the page at a path.
func getDocument(t *testing.T, h http.Handler, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: status %d", path, w.Code)
	}
	return w.Body.String()
}

// oneDocument returns the page of a document that is alone.
func oneDocument(t *testing.T, markdown string) string {
	t.Helper()
	return getDocument(t, Documents(fstest.MapFS{"runbook.md": {Data: []byte(markdown)}}), "/runbook")
}

var (
	linkOnPage   = regexp.MustCompile(`href="([^":]*)"`)
	anchorOnPage = regexp.MustCompile(` id="([^"]+)"`)
)

// TestDocuments follows all links of all documents, from the list on, and those of the alerts and of the status page.
func TestDocuments(t *testing.T) {
	h := Documents(deploy.Documents)
	rules, err := os.ReadFile("../../deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	type target struct{ path, anchor string }
	targets := map[target]string{} // with a page that links to them
	for text, link := range map[string]string{
		string(rules):                          `/runbook()#(\w+)'|/runbook\{\{.*\}\}()#(\w+)'`,
		draw(t, trouble(), View{Format: HTML}): `href="/runbook()#([^"]+)"`,
	} {
		found := regexp.MustCompile(link).FindAllStringSubmatch(text, -1)
		if len(found) < 5 {
			t.Errorf("%d links %s", len(found), link)
		}
		for _, m := range found {
			targets[target{"/runbook", strings.Join(m[1:], "")}] = link
		}
	}
	// The dashboard's links have these anchors.
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		targets[target{"/runbook", m[1]}] = "the dashboard"
	}

	anchors := map[string]map[string]int{} // by page
	for paths := []string{"/docs/"}; len(paths) > 0; paths = paths[1:] {
		path := paths[0]
		if anchors[path] != nil {
			continue
		}
		page := getDocument(t, h, path)
		anchors[path] = map[string]int{}
		for _, m := range anchorOnPage.FindAllStringSubmatch(page, -1) {
			anchors[path][m[1]]++
		}
		for _, m := range linkOnPage.FindAllStringSubmatch(page, -1) {
			to, anchor, _ := strings.Cut(m[1], "#")
			switch to {
			case "/": // the status page
				continue
			case "":
				to = path
			}
			targets[target{to, anchor}] = path
			paths = append(paths, to)
		}
	}
	for target, from := range targets {
		if n := anchors[target.path][target.anchor]; target.anchor != "" && n != 1 {
			t.Errorf("%s links to %s#%s: %d chapters", from, target.path, target.anchor, n)
		}
	}
	files, err := filepath.Glob("../../deploy/docs/*.md")
	if err != nil || len(anchors) != len(files)+3 { // the list, the runbook, the changes
		t.Errorf("%d pages for %d documents, %v", len(anchors), len(files), err)
	}
	if len(targets) < 100 {
		t.Errorf("only %d links", len(targets))
	}
}

// TestDocumentsOnce checks that only the first request reads and renders documents.
func TestDocumentsOnce(t *testing.T) {
	files := fstest.MapFS{"runbook.md": {Data: []byte("# Runbook\n")}, "docs/model.md": {Data: []byte("# The model\n")}}
	h := Documents(files)
	getDocument(t, h, "/docs/model")
	clear(files)
	getDocument(t, h, "/docs/model")
	getDocument(t, h, "/runbook")
}

// TestDocumentLinks checks what becomes of each kind of link.
func TestDocumentLinks(t *testing.T) {
	h := Documents(fstest.MapFS{
		"runbook.md":   {Data: []byte("# Runbook\n[a](docs/Two.md#x) [b](#here) [c](https://example.com/a.md) [d `e`](systemd/tls.conf) [f](../out.md)\n")},
		"docs/Two.md":  {Data: []byte("# Two words\n[a](../runbook.md) [b](Two.md)\n")},
		"docs/x.conf":  {},
		"unreached.md": {Data: []byte("# Unreached\n")},
	})
	for path, want := range map[string]string{
		"/runbook":  `<a href="/docs/two#x">a</a> <a href="#here">b</a> <a href="https://example.com/a.md">c</a> d <code>e</code> f</p>`,
		"/docs/two": `<a href="/runbook">a</a> <a href="/docs/two">b</a>`,
		"/docs/":    "<li><a href=\"/docs/two\">Two words</a></li>\n<li><a href=\"/runbook\">Runbook</a></li>\n<li><a href=\"/docs/unreached\">Unreached</a></li>",
	} {
		if page := getDocument(t, h, path); !strings.Contains(page, want) {
			t.Errorf("%s: no %s in\n%s", path, want, page)
		}
	}
	for _, path := range []string{"/docs/none", "/docs/x", "/docs/two.md", "/docs"} {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequest("GET", path, nil)); w.Code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}

// TestDocumentAnchors checks anchors that differ between Markdown programs: these are GitHub's.
func TestDocumentAnchors(t *testing.T) {
	page := oneDocument(t, "# A, b & `c_d`!\n\n## 2. Reuse TIME_WAIT\n\n## Same\n\n## Same\n\n## Größe\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
	for _, want := range []string{`id="a-b--c_d"`, `id="2-reuse-time_wait"`, `id="same"`, `id="same-1"`, `id="größe"`, "<td>2</td>"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s in\n%s", want, page)
		}
	}
}

// TestDocumentHTML checks that no HTML and no script link gets through.
func TestDocumentHTML(t *testing.T) {
	page := oneDocument(t, "<script>alert(1)</script>\n\na <img src=x onerror=alert(1)> [b](javascript:alert(1)) <b>\n")
	for _, bad := range []string{"alert(1)</script>", "<img", "javascript:", "<b>"} {
		if strings.Contains(page, bad) {
			t.Errorf("%s in\n%s", bad, page)
		}
	}
}
