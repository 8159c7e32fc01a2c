//go:build linux

package status

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/deploy"
)

var screenshots = flag.String("screenshots", "", "directory for pictures of all pages")

// axe.min.js is axe-core 4.14.1 as published, under the Mozilla Public License 2.0: it finds what keeps
// people from using a page.
//
//go:embed testdata/axe.min.js
var axe string

// A browser is a running Chromium. What goes wrong in a page is in faults.
type browser struct {
	context.Context

	mu     sync.Mutex
	faults []string
}

// newBrowser starts Chromium, which may load from nowhere but site.
func newBrowser(t *testing.T, site string) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("no chromium: install the package chromium")
		}
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute) // what takes 20 s alone, beside much other work
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WSURLReadTimeout(time.Minute),
		chromedp.Flag("disable-gpu", true), chromedp.UserDataDir(t.TempDir()))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{Context: ctx}
	err = chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			if url := e.Request.URL; !strings.HasPrefix(url, site+"/") && !strings.HasPrefix(url, "data:") {
				b.fault("request to %s", url)
			}
		case *log.EventEntryAdded:
			b.fault("console: %s: %s", e.Entry.URL, e.Entry.Text)
		case *runtime.EventConsoleAPICalled:
			b.fault("console.%s", e.Type)
		case *runtime.EventExceptionThrown:
			b.fault("script: %v", e.ExceptionDetails)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	_, networkErr := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	_, logErr := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	if err := errors.Join(networkErr, logErr); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *browser) fault(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, fmt.Sprintf(format, args...))
}

// open opens a page, as wide as that and in a colour scheme.
func (b *browser) open(t *testing.T, url string, width int64, colors string) {
	t.Helper()
	_, err := chromedp.Call(b.Context, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: colors}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(b.Context, chromedp.EmulateViewport(width, 900), chromedp.Navigate(url)); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
}

// check reports what went wrong since the last time.
func (b *browser) check(t *testing.T, name string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		t.Errorf("%s: %s", name, f)
	}
	b.faults = nil
}

// do runs an action in the page.
func do[T any](t *testing.T, b *browser, action chromedp.Action[T]) T {
	t.Helper()
	got, err := chromedp.Run(b.Context, action)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// serve serves the snapshots under their names, and the documents, with the headers of the exporter.
func serve(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for name, s := range snapshots() {
		past := remembered(s)
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) {
			v, err := ParseView(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			SetHeader(w.Header(), v)
			info := testInfo
			info.History, info.Modes = past, Modes{Namespaces: scan.ScopeAll, SNAT: s.Trace != nil, Trace: s.Trace != nil}
			if err := New(info).Write(w, &s, v); err != nil {
				t.Error(err)
			}
		})
	}
	documents := Documents(deploy.Documents)
	mux.Handle("/runbook", documents)
	mux.Handle("/docs/", documents)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

// violations of axe-core: the rule, and the elements.
const runAxe = `axe.run(document).then(r => r.violations.concat(r.incomplete.filter(v => v.id != "color-contrast"))
	.map(v => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + " " + n.any.map(a => a.message)).join("; ")))`

// TestBrowser opens all pages in a browser: wide and narrow, light and dark. Nothing may be wrong in
// them, nothing may be cut off, and people who cannot see them must be able to use them.
func TestBrowser(t *testing.T) {
	server := serve(t)
	b := newBrowser(t, server.URL)
	// Each page is wide and light, and narrow and dark: what is checked of colours and of widths does not
	// depend on each other.
	looks := []struct {
		width  int64
		colors string
	}{{1600, "light"}, {360, "dark"}}
	if *screenshots != "" {
		looks = append(looks, looks[0], looks[1])
		looks[2].colors, looks[3].colors = "dark", "light"
	}
	for _, page := range []string{"trouble", "calm?destination=10.0.0.2:443&what-if=load:5,reuse", "calm", "failed", "hostile", "runbook", "docs/", "docs/reference", "destinations", "namespaces"} {
		for _, look := range looks {
			path, query, _ := strings.Cut(page, "?")
			name := fmt.Sprintf("%s-%d-%s", page, look.width, look.colors)
			b.open(t, server.URL+"/"+path+"?pause&"+query, look.width, look.colors)
			if got := do(t, b, chromedp.Evaluate[int64]("document.documentElement.scrollWidth")); got > look.width {
				t.Errorf("%s: the page is %d pixels wide", name, got)
			}
			if *screenshots != "" {
				do(t, b, chromedp.Evaluate[chromedp.Void](`for (const d of [...document.querySelectorAll("details")].slice(0, 2)) d.open = true`))
				if err := os.WriteFile(filepath.Join(*screenshots, strings.ReplaceAll(name, "/", "-")+".png"), do(t, b, chromedp.FullScreenshot(100)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if page != "destinations" && page != "namespaces" { // these are as the others, but axe-core takes seconds
				do(t, b, chromedp.Evaluate[chromedp.Void](`for (const d of document.querySelectorAll("details")) d.open = true`))
				do(t, b, chromedp.Evaluate[chromedp.Void](axe))
				for _, v := range do(t, b, chromedp.Evaluate[[]string](runAxe, chromedp.EvalAwaitPromise)) {
					t.Errorf("%s: %s", name, v)
				}
			}
			b.check(t, name)
		}
	}
}

// TestBrowserRefresh checks that the page refreshes itself and not when it is paused, that what was
// opened stays open then, and that the page is the same without scripts.
func TestBrowserRefresh(t *testing.T) {
	var requests atomic.Int32
	s := trouble()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		v, err := ParseView(r)
		if err != nil {
			t.Error(err)
		}
		SetHeader(w.Header(), v)
		if !v.Paused {
			w.Header().Set("Refresh", "1")
		}
		if err := New(testInfo).Write(w, &s, v); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	b := newBrowser(t, server.URL)
	b.open(t, server.URL+"/", 1600, "light")
	const third = `document.querySelectorAll("details")[2]`
	do(t, b, chromedp.Evaluate[chromedp.Void](third+".querySelector('summary').click()"))
	for before := requests.Load(); requests.Load() < before+2; time.Sleep(10 * time.Millisecond) {
		if b.Err() != nil {
			t.Fatal("the page does not refresh itself")
		}
	}
	b.await(t, "document.readyState == 'complete' && "+third+".open")
	do(t, b, chromedp.Evaluate[chromedp.Void](`document.querySelector(".button").click()`))
	b.await(t, `document.readyState == "complete" && location.search == "?pause"`)
	before := requests.Load()
	time.Sleep(1500 * time.Millisecond)
	if got := requests.Load(); got != before {
		t.Errorf("%d requests while paused", got-before)
	}

	if _, err := chromedp.Call(b.Context, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	b.open(t, server.URL+"/?pause", 1600, "light")
	if got := do(t, b, chromedp.Text("h1")); !strings.Contains(got, "5 destinations in danger") {
		t.Errorf("without scripts: %q", got)
	}
	b.check(t, "refresh")
}

// await waits until an expression is true in the page, also while that is being replaced.
func (b *browser) await(t *testing.T, expression string) {
	t.Helper()
	for {
		if ok, err := chromedp.Run(b.Context, chromedp.Evaluate[bool](expression)); ok && err == nil {
			return
		}
		if b.Err() != nil {
			t.Fatalf("never: %s", expression)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
