package status

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"ephemeral_port_exporter/deploy"
)

// TestRunbook checks that the links in the runbook, and those of the alerts and of the status page to
// it, lead to a chapter.
func TestRunbook(t *testing.T) {
	page, err := Runbook([]byte(deploy.Runbook))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for _, m := range regexp.MustCompile(`<h\d id="([^"]+)">`).FindAllStringSubmatch(string(page), -1) {
		ids[m[1]]++
	}
	if len(ids) != strings.Count(deploy.Runbook, "\n#")+1 {
		t.Errorf("%d anchors for the headings of the runbook", len(ids))
	}
	rules, err := os.ReadFile("../../deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for text, link := range map[string]string{
		string(page):                           `href="#([^"]+)"`,
		string(rules):                          `/runbook#(\w+)'|/runbook\{\{.*\}\}#(\w+)'`,
		draw(t, trouble(), View{Format: HTML}): `href="/runbook#([^"]+)"`,
	} {
		found := regexp.MustCompile(link).FindAllStringSubmatch(text, -1)
		if len(found) < 5 {
			t.Errorf("%d links %s", len(found), link)
		}
		for _, m := range found {
			links++
			if anchor := strings.Join(m[1:], ""); ids[anchor] != 1 {
				t.Errorf("link to %s: %d chapters", anchor, ids[anchor])
			}
		}
	}
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	if links < len(alerts) {
		t.Errorf("%d links for %d alerts", links, len(alerts))
	}
	for _, a := range alerts { // the dashboard's links have this anchor
		if n := strings.Count(string(page), `id="`+a[1]+`"`); n != 1 {
			t.Errorf("%d anchors %s", n, a[1])
		}
	}
}

// TestRunbookAnchors checks anchors that differ between Markdown programs: these are GitHub's.
func TestRunbookAnchors(t *testing.T) {
	page, err := Runbook([]byte("# A, b & `c_d`!\n\n## 2. Reuse TIME_WAIT\n\n## Same\n\n## Same\n\n## Größe\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`id="a-b--c_d"`, `id="2-reuse-time_wait"`, `id="same"`, `id="same-1"`, `id="größe"`, "<td>2</td>"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("no %s in\n%s", want, page)
		}
	}
}

// TestRunbookHTML checks that no HTML and no script link gets through.
func TestRunbookHTML(t *testing.T) {
	page, err := Runbook([]byte("<script>alert(1)</script>\n\na <img src=x onerror=alert(1)> [b](javascript:alert(1)) <b>\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"alert(1)</script>", "<img", "javascript:", "<b>"} {
		if strings.Contains(string(page), bad) {
			t.Errorf("%s in\n%s", bad, page)
		}
	}
}
