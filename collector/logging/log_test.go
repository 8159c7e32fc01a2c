package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// An output keeps lines. It blocks while somebody else holds hold.
type output struct {
	hold chan struct{}

	mu   sync.Mutex
	b    bytes.Buffer
	full bool // writes fail
}

func newOutput() *output { return &output{hold: make(chan struct{}, 1)} }

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.hold <- struct{}{}
	defer func() { <-o.hold }()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.full {
		return 0, errors.New("no space left on device")
	}
	return o.b.Write(b)
}

func (o *output) setFull(full bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.full = full
}

// take returns the lines since the last call.
func (o *output) take() []string {
	synctest.Wait()
	return o.now()
}

// now is take, without lines that are still to come.
func (o *output) now() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := slices.Collect(strings.Lines(o.b.String()))
	o.b.Reset()
	return lines
}

// start returns a log that writes to w, without times.
func start(w io.Writer) (*Log, *slog.Logger) {
	l := New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	return l, slog.New(l.Handler())
}

// check compares lines.
func check(t *testing.T, got []string, want ...string) {
	t.Helper()
	for i := range want {
		want[i] += "\n"
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%swant\n%s", strings.Join(got, ""), strings.Join(want, ""))
	}
}

// TestKinds floods a log with lines of one kind, and checks when it has what. Lines of another kind, and those about
// our own network namespace, are not affected.
func TestKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newOutput()
		l, logger := start(out)
		flood := func(n int) {
			for i := range n {
				logger.Error("failed", "netns", fmt.Sprint("tenant", i))
			}
		}
		flood(1000)
		logger.Warn("other")
		logger.Error("failed", "netns", "self")
		got := out.take()
		if len(got) != maxLines+2 {
			t.Fatalf("%d lines at once", len(got))
		}
		check(t, got[:1], "level=ERROR msg=failed netns=tenant0")
		check(t, got[maxLines-1:], "level=ERROR msg=failed netns=tenant9", "level=WARN msg=other", "level=ERROR msg=failed netns=self")

		time.Sleep(period / 2)
		flood(500)
		check(t, out.take())
		time.Sleep(period / 2) // the flood has ended
		check(t, out.take(), `level=ERROR msg="Lines are left out of the log" of=failed lines=1490`)

		// A new period begins with the next line.
		time.Sleep(period)
		check(t, out.take())
		flood(maxLines)
		if got := out.take(); len(got) != maxLines {
			t.Errorf("%d lines in a new period", len(got))
		}
		time.Sleep(period)
		check(t, out.take())

		for range maxLines + 2 {
			logger.Error("failed", "netns", "self")
		}
		out.take()
		l.Close(time.Second)
		check(t, out.take(), `level=ERROR msg="Lines are left out of the log" of=failed lines=2 netns=self`)
	})
}

// TestManyKinds has lines that all differ, and have long texts.
func TestManyKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newOutput()
		l, logger := start(out)
		long := strings.Repeat("x", 100<<10)
		for i := range 1000 {
			logger.Info(fmt.Sprint(i, long), "text", long, "err", errors.New(long))
		}
		l.Close(time.Second)
		lines := out.take()
		for _, line := range lines {
			if len(line) > 4*maxValue {
				t.Errorf("a line has %d bytes", len(line))
			}
		}
		check(t, lines[maxKinds+maxLines:], fmt.Sprintf(`level=INFO msg="Lines are left out of the log" of=others lines=%d`, 1000-maxKinds-maxLines))
	})
}

// TestSlowReader has a reader of the log that pauses. Nobody waits long for it, and it gets the lines in their order, as
// many as may wait.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newOutput()
		l, logger := start(out)
		out.hold <- struct{}{}
		begin := time.Now()
		const n = 2 * maxWaiting
		for i := range n {
			logger.With("n", i).Info(fmt.Sprint("kind ", i%(maxKinds-1)))
		}
		if waited := time.Since(begin); waited != patience {
			t.Errorf("callers waited for %v, want %v", waited, patience)
		}
		check(t, out.take())
		<-out.hold
		lines := out.take()
		if len(lines) != maxWaiting+1 { // one was being written
			t.Errorf("%d lines", len(lines))
		}
		for i, line := range lines {
			if want := fmt.Sprintf("level=INFO msg=\"kind %d\" n=%d\n", i%(maxKinds-1), i); line != want {
				t.Errorf("got %s, want %s", line, want)
			}
		}
		time.Sleep(period)
		leftOut := 0
		for _, line := range out.take() {
			var kind, n int
			if _, err := fmt.Sscanf(line, `level=INFO msg="Lines are left out of the log" of="kind %d" lines=%d`, &kind, &n); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			leftOut += n
		}
		if len(lines)+leftOut != n {
			t.Errorf("%d lines and %d left out, want %d in all", len(lines), leftOut, n)
		}

		// It is waited for again.
		logger.Info("last")
		check(t, out.now(), "level=INFO msg=last")
		out.hold <- struct{}{}
		logger.Info("never read")
		begin = time.Now()
		l.Close(time.Second)
		if waited := time.Since(begin); waited != time.Second {
			t.Errorf("the end waited for %v", waited)
		}
		<-out.hold
	})
}

// TestDiskFull has a log that cannot be written for some minutes.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newOutput()
		l, logger := start(out)
		out.setFull(true)
		logger.Error("failed")
		time.Sleep(5*period + 1)
		check(t, out.take())
		out.setFull(false)
		time.Sleep(period)
		check(t, out.take(), `level=ERROR msg="Lines are left out of the log" of=failed lines=1`)
		l.Close(0)
	})
}
