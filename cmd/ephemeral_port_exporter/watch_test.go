//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// openTerminal returns both ends of a terminal of 80 columns and 24 lines, see pty(7).
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// A watching is a running --status --watch.
type watching struct {
	cmd  *exec.Cmd
	out  *logBuffer
	read chan struct{} // closed when all of a terminal has been read; nil for a pipe
}

// startWatch runs --status --watch=1s until the test ends, on a terminal of a type, or if that is empty, into a pipe.
func startWatch(t *testing.T, term string, args ...string) *watching {
	t.Helper()
	w := &watching{cmd: command(t, append(args, "--status", "--watch=1s")...), out: &logBuffer{}}
	if term == "" {
		w.cmd.Stdout = w.out
	} else {
		master, slave := openTerminal(t)
		defer slave.Close()
		w.cmd.Stdout, w.cmd.Stderr = slave, slave
		w.cmd.Env = append(os.Environ(), "TERM="+term, "LC_ALL=C.UTF-8")
		w.read = make(chan struct{})
		go func() {
			_, _ = io.Copy(w.out, master) // EIO at the end
			close(w.read)
		}()
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.cmd.Process.Kill() })
	return w
}

// wait waits until the output has one text after another, whatever the ends of lines.
func (w *watching) wait(t *testing.T, texts ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		rest, ok := strings.Join(strings.Fields(w.out.String()), " "), true
		for _, text := range texts {
			if ok {
				_, rest, ok = strings.Cut(rest, text)
			}
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q: no %q in\n%s", w.cmd.Args, texts, w.out)
		}
	}
}

// stop sends a signal and waits for the end.
func (w *watching) stop(t *testing.T, s os.Signal) {
	t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("%v: %q ended with %v, want exit status 0", s, w.cmd.Args, err)
	}
	if w.read != nil {
		<-w.read
	}
}

// TestWatch watches a pool that fills up, on terminals and in pipes. One of them cannot read the host at first, and goes on.
func TestWatch(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	proc := filepath.Join(t.TempDir(), "proc")
	if err := os.Symlink("/nonexistent", proc); err != nil {
		t.Fatal(err)
	}

	const (
		calm, wholeEnd = "No destination is in danger", "See EphemeralPortsSettingsDiffer."
		full, cut      = "1 destination in danger: 198.51.100.7:80 is out of ports", "more lines: see --status without --watch"
	)
	live, dumb, none := startWatch(t, "xterm"), startWatch(t, "dumb"), startWatch(t, "")
	failing := startWatch(t, "xterm", "--path.procfs="+proc)
	documents := command(t, "--status", "--watch=1s", "--format=json")
	stdout, err := documents.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := documents.Start(); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*watching{live, dumb, none} {
		w.wait(t, calm, wholeEnd)
	}
	var document struct{ Level string }
	if err := json.NewDecoder(stdout).Decode(&document); err != nil || document.Level != "calm" {
		t.Errorf("document %+v, %v", document, err)
	}
	stdout.Close()
	failing.wait(t, "The ports of this host could not be read")

	netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}.Hold(t, 100)
	if err := os.Remove(proc); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc", proc); err != nil {
		t.Fatal(err)
	}
	for i, w := range []*watching{live, dumb, none, failing} {
		end := cut
		if w == none {
			end = wholeEnd
		}
		w.wait(t, full, end)
		w.stop(t, []os.Signal{unix.SIGINT, unix.SIGTERM}[i%2])
		if strings.Contains(w.out.String(), "level=") {
			t.Errorf("%q has a log:\n%s", w.cmd.Args, w.out)
		}
	}

	// A new page replaces the last one, and has room on the terminal together with the cursor.
	pages := strings.Split(strings.ReplaceAll(live.out.String(), "\r\n", "\n"), "\x1b[H\x1b[J")
	if len(pages) < 3 || pages[0] != "" {
		t.Errorf("pages %q", pages)
	}
	for _, page := range pages[1:] {
		if strings.Contains(page, "\x1b") || strings.Count(page, "\n") > 23 || !strings.HasSuffix(page, "\n") || regexp.MustCompile(`.{81}`).MatchString(page) {
			t.Errorf("page:\n%q", page)
		}
	}
	if last := pages[len(pages)-1]; !strings.Contains(last, cut+"\n") {
		t.Errorf("page:\n%s", last)
	}
	// The pool was not there before it was full. Blocks are for those terminals that are able to clear themselves.
	for w, want := range map[*watching]string{live: `    [·▁]*█  (\d+-)?100 ports, exhausted since \d\d:\d\d UTC`, dumb: `    [-0]*9  (\d+-)?100 ports, exhausted since \d\d:\d\d UTC`} {
		if !regexp.MustCompile(want).MatchString(w.out.String()) {
			t.Errorf("%q: no %s in\n%s", w.cmd.Args, want, w.out)
		}
	}
	// Else the pages follow each other, and in a pipe they are whole.
	for _, w := range []*watching{dumb, none} {
		if got := w.out.String(); strings.Contains(got, "\x1b") || !strings.Contains(strings.ReplaceAll(got, "\r", ""), "\n\n"+strings.SplitN(got, ":", 2)[0]+": 1 destination in danger:") {
			t.Errorf("%q:\n%q", w.cmd.Args, got)
		}
	}
	if got := none.out.String(); strings.Count(got, "\nSettings of this host\n") < 2 || !strings.Contains(got, "\nDESTINATION      SOURCE        USED  BY STATE") {
		t.Errorf("in a pipe:\n%s", got)
	}

	if err := documents.Wait(); err == nil || err.Error() != "signal: broken pipe" {
		t.Errorf("without a reader: ended with %v", err)
	}
}

// TestStatusTerminal checks that --status has the width of the terminal, and is whole.
func TestStatusTerminal(t *testing.T) {
	master, slave := openTerminal(t)
	cmd := command(t, "--status")
	cmd.Stdout, cmd.Env = slave, append(os.Environ(), "TERM=xterm")
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	slave.Close()
	out, _ := io.ReadAll(master) // EIO at the end
	got := strings.ReplaceAll(string(out), "\r\n", "\n")
	if strings.Contains(got, "\x1b") || regexp.MustCompile(`.{81}`).MatchString(got) || !strings.Contains(got, "further ports withheld, whatever the\n") || !strings.Contains(got, "\nModes of the exporter\n  None is on") || !strings.HasSuffix(got, ".\n") || strings.Contains(got, "15 minutes") {
		t.Errorf("got %q", got)
	}
}

// TestCharacters checks who gets other characters than ASCII.
func TestCharacters(t *testing.T) {
	for _, tt := range []struct {
		env   map[string]string
		ascii bool
	}{
		{map[string]string{"TERM": "xterm", "LANG": "C.UTF-8"}, false},
		{map[string]string{"TERM": "xterm", "LANG": "de_DE.utf8"}, false},
		{map[string]string{"TERM": "dumb", "LANG": "C.UTF-8"}, true},
		{map[string]string{"LANG": "C.UTF-8"}, true},
		{map[string]string{"TERM": "xterm"}, true},
		{map[string]string{"TERM": "xterm", "LANG": "de_DE"}, true},
		{map[string]string{"TERM": "xterm", "LANG": "C.UTF-8", "LC_CTYPE": "C"}, true},
		{map[string]string{"TERM": "xterm", "LANG": "C", "LC_ALL": "C.UTF-8", "LC_CTYPE": "C"}, false},
	} {
		if got := newScreen(os.Stdout, func(name string) string { return tt.env[name] }, true).ascii; got != tt.ascii {
			t.Errorf("%v: ASCII %v", tt.env, got)
		}
	}
}

// TestFit cuts pages for a terminal of 10 columns.
func TestFit(t *testing.T) {
	for _, tt := range []struct {
		text  string
		lines int
		want  string
	}{
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 2, "a\n2 more lines: see --status without --watch\n"},
		{"a\nb\nc\n", 0, "3 more lines: see --status without --watch\n"},
		{"0123456789\nb\nc\n", 3, "0123456789\nb\nc\n"},
		{"012345678█\nb\nc\n", 3, "012345678█\nb\nc\n"},
		{"0123456789x\n\nb\n", 3, "0123456789x\n2 more lines: see --status without --watch\n"},
	} {
		if got := fit([]byte(tt.text), 10, tt.lines); !bytes.Equal(got, []byte(tt.want)) {
			t.Errorf("%q in %d lines: %q, want %q", tt.text, tt.lines, got, tt.want)
		}
	}
}
