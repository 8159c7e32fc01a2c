package status

import (
	"bytes"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	goldtext "github.com/yuin/goldmark/text"
)

// alertChapter is the heading of the chapter about an alert.
var alertChapter = regexp.MustCompile(`(<h2 id="\w+">)(Ephemeral\w+)</h2>`)

// Documents returns a handler that serves all documents in Markdown as pages: runbook.md as /runbook, others as
// /docs/NAME, and a list of them as /docs/. The first request renders all.
func Documents(files fs.FS) http.Handler {
	render := sync.OnceValues(func() (map[string][]byte, error) { return renderDocuments(files) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pages, err := render()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		page, ok := pages[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		setSecurity(w.Header())
		_, _ = w.Write(page)
	})
}

// renderDocuments returns the pages by their paths on the server.
func renderDocuments(files fs.FS) (map[string][]byte, error) {
	var names []string
	if err := fs.WalkDir(files, ".", func(name string, _ fs.DirEntry, err error) error {
		if path.Ext(name) == ".md" {
			names = append(names, name)
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("status: find documents: %w", err)
	}
	pages := map[string][]byte{}
	list := []byte("# Documents\n\n")
	for _, name := range names {
		markdown, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("status: read a document: %w", err)
		}
		if pages[documentPath(name)], err = renderDocument(name, markdown, names); err != nil {
			return nil, err
		}
		list = fmt.Appendf(list, "- [%s](%s)\n", titleOf(markdown), name)
	}
	var err error
	pages["/docs/"], err = renderDocument("", list, names)
	return pages, err
}

// documentPath returns where the server has a document.
func documentPath(name string) string {
	if name == "runbook.md" {
		return "/runbook"
	}
	return "/docs/" + strings.ToLower(strings.TrimSuffix(path.Base(name), ".md"))
}

// titleOf returns the title of a document: its first line.
func titleOf(markdown []byte) string {
	line, _, _ := strings.Cut(string(markdown), "\n")
	return strings.TrimPrefix(line, "# ")
}

// renderDocument returns a document as a page. Its anchors are those that GitHub gives to the headings. The chapter about
// an alert has the name of the alert as a second one: links of Grafana cannot change it to lower case. Links to
// documents lead to their pages. Of links to other files, only the text is left, and HTML is left out.
func renderDocument(name string, markdown []byte, names []string) ([]byte, error) {
	md := goldmark.New(goldmark.WithExtensions(extension.Table), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
	context := parser.NewContext(parser.WithIDs(&anchors{used: map[string]int{}}))
	document := md.Parser().Parse(goldtext.NewReader(markdown), parser.WithContext(context))
	for _, link := range linksOf(document) {
		file, anchor, _ := strings.Cut(string(link.Destination), "#")
		if file == "" || strings.Contains(file, ":") {
			continue
		}
		if file = path.Join(path.Dir(name), file); !slices.Contains(names, file) {
			unlink(link)
			continue
		}
		link.Destination = []byte(documentPath(file))
		if anchor != "" {
			link.Destination = append(link.Destination, "#"+anchor...)
		}
	}
	var body, page bytes.Buffer
	if err := md.Renderer().Render(&body, markdown, document); err != nil {
		return nil, fmt.Errorf("status: render %s: %w", name, err)
	}
	html := alertChapter.ReplaceAllString(body.String(), `$1<span id="$2">$2</span></h2>`)
	if err := parse(documentTemplate).Execute(&page, struct {
		Title string
		Body  template.HTML
	}{titleOf(markdown), template.HTML(html)}); err != nil { // safe: goldmark escapes all text
		return nil, fmt.Errorf("status: render %s: %w", name, err)
	}
	return page.Bytes(), nil
}

// linksOf returns the links of a document.
func linksOf(document ast.Node) []*ast.Link {
	var links []*ast.Link
	// The only errors of Walk are those of the function.
	_ = ast.Walk(document, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if link, ok := n.(*ast.Link); ok && entering {
			links = append(links, link)
		}
		return ast.WalkContinue, nil
	})
	return links
}

// unlink puts the text of a link in its place.
func unlink(link *ast.Link) {
	for link.FirstChild() != nil {
		link.Parent().InsertBefore(link.Parent(), link, link.FirstChild())
	}
	link.Parent().RemoveChild(link.Parent(), link)
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
