package status

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

var (
	//go:embed page.html.tmpl
	pageTemplate string
	//go:embed document.html.tmpl
	documentTemplate string
	//go:embed style.css
	style string
	//go:embed page.js
	script string
)

// refreshSeconds is the time between two refreshes of the page.
const refreshSeconds = 10

// parse parses a template of this package.
func parse(text string) *template.Template {
	return template.Must(template.New("").Funcs(template.FuncMap{
		"style":   func() template.CSS { return template.CSS(style) },
		"script":  func() template.JS { return template.JS(script) },
		"refresh": func() int { return refreshSeconds },
		"lower":   strings.ToLower,
		"groups":  groups,
	}).Parse(text))
}

// groups returns the parts of an address between which a line may end: those of IPv6 end with a colon.
func groups(address string) []string {
	if strings.Count(address, ":") < 2 {
		return []string{address}
	}
	return strings.SplitAfter(address, ":")
}

// SetHeader sets the header of an answer in a format. The browser may load nothing, and run and apply
// nothing but what is in the page.
func SetHeader(h http.Header, v View) {
	h.Set("Content-Type", map[Format]string{HTML: "text/html", Text: "text/plain", JSON: "application/json"}[v.Format]+"; charset=utf-8")
	h.Set("Vary", "Accept")
	setSecurity(h)
	if v.Format == HTML && !v.Paused {
		// Not an element of the page: with the header it is the same, and the page has no timer.
		h.Set("Refresh", strconv.Itoa(refreshSeconds))
	}
}

// setSecurity sets what is the same for all pages.
func setSecurity(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; style-src '"+hashOf(style)+"'; script-src '"+hashOf(script)+"'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// hashOf returns the source expression for an element with this text, see Content Security Policy
// Level 3 section 2.3.1.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
