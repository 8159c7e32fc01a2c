package status

import (
	"bytes"
	"fmt"
	"html/template"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
)

// alertChapter is the heading of the chapter about an alert.
var alertChapter = regexp.MustCompile(`(<h2 id="\w+">)(Ephemeral\w+)</h2>`)

// Runbook returns a runbook in Markdown as a page. Its anchors are those that GitHub gives to the
// headings. The chapter about an alert has the name of the alert as a second one: links of Grafana cannot change
// it to lower case. HTML in it is left out.
func Runbook(markdown []byte) ([]byte, error) {
	md := goldmark.New(goldmark.WithExtensions(extension.Table), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
	var body, page bytes.Buffer
	context := parser.NewContext(parser.WithIDs(&anchors{used: map[string]int{}}))
	if err := md.Convert(markdown, &body, parser.WithContext(context)); err != nil {
		return nil, fmt.Errorf("status: render the runbook: %w", err)
	}
	html := alertChapter.ReplaceAllString(body.String(), `$1<span id="$2">$2</span></h2>`)
	// Safe: goldmark escapes all text.
	if err := parse(runbookTemplate).Execute(&page, template.HTML(html)); err != nil {
		return nil, fmt.Errorf("status: render the runbook: %w", err)
	}
	return page.Bytes(), nil
}

// SetRunbookHeader sets the header of the page that Runbook returns.
func SetRunbookHeader(h http.Header) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	setSecurity(h)
}

// anchors makes the anchors of headings as GitHub does: lower case, blanks as "-", and of all else only
// letters, digits, "-" and "_". A second heading with the same text gets "-1".
type anchors struct{ used map[string]int }

// Generate implements parser.IDs.
func (a *anchors) Generate(heading []byte, _ ast.NodeKind) []byte {
	anchor := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
			return unicode.ToLower(r)
		default:
			return -1
		}
	}, strings.TrimSpace(string(heading)))
	n := a.used[anchor]
	a.used[anchor]++
	if n > 0 {
		anchor += "-" + strconv.Itoa(n)
	}
	return []byte(anchor)
}

// Put implements parser.IDs.
func (a *anchors) Put(anchor []byte) { a.used[string(anchor)]++ }
