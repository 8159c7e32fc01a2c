//go:build linux

package scan

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

// manyReusable answers with one connection, and many in TIME_WAIT whose ports connect() may take over if they
// used timestamps.
const manyReusable = 50

func reusableSockets(r sockdiagtest.Request) [][]byte {
	if r.Sequence == 1 { // the listeners
		return [][]byte{r.Done(0)}
	}
	datagrams := [][]byte{row(r)}
	for i := range manyReusable {
		local := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(40001+i))
		datagrams = append(datagrams, r.Socket(uint8(tcpstate.TimeWait), local, netip.MustParseAddrPort("10.0.0.2:80"), 30000))
	}
	return append(datagrams, r.Done(0))
}

// answerTimestamps answers for a connection with TCP timestamps, or without.
func answerTimestamps(used bool) func(sockdiagtest.Request) [][]byte {
	return func(r sockdiagtest.Request) [][]byte {
		info := []byte{12, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0} // INET_DIAG_INFO with the first bytes of struct tcp_info
		if used {
			info[4+5] = 1 // TCPI_OPT_TIMESTAMPS
		}
		return [][]byte{r.Message(r.Type, 0, append(row(r)[unix.SizeofNlMsghdr:], info...))}
	}
}

// detailsScanner returns a Scanner of a host with tcp_tw_reuse, whose kernel has reusableSockets and gives
// *timestamps as the answer to a question about one. It logs to the buffer.
func detailsScanner(t *testing.T, timestamps *func(sockdiagtest.Request) [][]byte) (*Scanner, *bytes.Buffer) {
	t.Helper()
	var none *fault
	s, log := faultyScanner(t, &none)
	writeProc(t, s.cfg.Proc, "sys/net/ipv4/tcp_tw_reuse", "1\n")
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		question := *timestamps // the fake kernel is another goroutine
		fd, err := sockdiagtest.Dial(func(r sockdiagtest.Request) [][]byte {
			if r.Type == unix.SOCK_DIAG_BY_FAMILY && r.Body[2] != 0 {
				return question(r)
			}
			return reusableSockets(r)
		})
		if err != nil {
			return nil, err
		}
		return sockdiag.NewConn(fd, buffer), nil
	}
	return s, log
}

// TestTimestampsFaults checks that a question about timestamps that fails leaves the sockets as they were read,
// in the worst case, and that it is logged once.
func TestTimestampsFaults(t *testing.T) {
	for _, f := range []fault{
		{name: "refused", want: os.ErrPermission, answer: func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(unix.EPERM)} }},
		{name: "no memory", want: unix.ENOMEM, answer: func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(unix.ENOMEM)} }},
		{name: "half a message", want: sockdiag.ErrMalformed, answer: func(r sockdiagtest.Request) [][]byte { return [][]byte{row(r)[:40]} }},
		{name: "no answer", want: os.ErrDeadlineExceeded, answer: func(sockdiagtest.Request) [][]byte { return nil }},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			answer := f.answer
			s, log := detailsScanner(t, &answer)
			s.cfg.Timeout = time.Second
			scan := func() (Namespace, pool.Destination) {
				t.Helper()
				n := s.Scan(t.Context()).Namespaces[0]
				if n.TCP.Outcome != Collected || n.TCP.Err != nil || len(n.TCP.Report.Destinations) != 1 || n.TimeWait.Outcome != Collected {
					t.Fatalf("got %+v, want one destination", n)
				}
				return n, n.TCP.Report.Destinations[0]
			}
			for range 2 {
				n, d := scan()
				if !errors.Is(n.TCP.TimestampsErr, f.want) {
					t.Errorf("timestamps: got %v, want %v", n.TCP.TimestampsErr, f.want)
				}
				if d.Held != 1+manyReusable || d.Reusable != 0 || d.ReusableUnknown != manyReusable || d.Hold < 60 {
					t.Errorf("%d ports held, %d reusable, %d may be, for %v s, want %d, 0, %d, 60", d.Held, d.Reusable, d.ReusableUnknown, d.Hold, 1+manyReusable, manyReusable)
				}
			}
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, "TCP timestamps") {
				t.Errorf("log: got %q, want one warning", got)
			}

			log.Reset()
			answer, s.cfg.Timeout = answerTimestamps(true), time.Minute
			if n, d := scan(); n.TCP.TimestampsErr != nil || d.Reusable != manyReusable || d.Timestamps != pool.Yes || log.Len() > 0 {
				t.Errorf("after the fault: %v, %d reusable ports, timestamps %v, log %q", n.TCP.TimestampsErr, d.Reusable, d.Timestamps, log)
			}
			answer, s.cfg.Timeout = f.answer, time.Second // what was learned stays
			if _, d := scan(); d.Reusable != manyReusable || d.Timestamps != pool.Yes {
				t.Errorf("fault after an answer: %d reusable ports, timestamps %v", d.Reusable, d.Timestamps)
			}
		})
	}
}

// TestTimestampsReread checks that the sockets are as they were read first, in the worst case, if an answer was not
// as assumed and they cannot be read once more.
func TestTimestampsReread(t *testing.T) {
	answer := answerTimestamps(false)
	s, _ := detailsScanner(t, &answer)
	fills := 0
	s.fill = func(table *pool.Table, ports pool.PortRange, deadline time.Time) error {
		if fills++; fills > 1 {
			return unix.EBUSY
		}
		return s.dump(table, ports, deadline)
	}
	n := s.Scan(t.Context()).Namespaces[0]
	if n.TCP.Outcome != Collected || !errors.Is(n.TCP.TimestampsErr, unix.EBUSY) || len(n.TCP.Report.Destinations) != 1 || fills != 2 {
		t.Fatalf("read %d times: got %+v, want one destination", fills, n.TCP)
	}
	if d := n.TCP.Report.Destinations[0]; d.Reusable != 0 || d.ReusableUnknown != manyReusable || d.Hold < 60 {
		t.Errorf("%d ports reusable, %d may be, for %v s", d.Reusable, d.ReusableUnknown, d.Hold)
	}
}

// TestTimeWaitFaults checks that counters of TIME_WAIT that cannot be read leave the sockets as they were read, and
// that this is logged once.
func TestTimeWaitFaults(t *testing.T) {
	for _, file := range []string{"sys/net/ipv4/tcp_max_tw_buckets", "thread-self/net/netstat"} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			var none *fault
			s, log := faultyScanner(t, &none)
			writeProc(t, s.cfg.Proc, file, "none\n")
			for range 2 {
				n := s.Scan(t.Context()).Namespaces[0]
				checkTCPCollected(t, n)
				if n.TimeWait.Outcome != Failed || n.TimeWait != (TimeWait{Result: n.TimeWait.Result}) || !strings.Contains(n.TimeWait.Err.Error(), filepath.Base(file)) {
					t.Errorf("got %+v, want an error about %s and no numbers", n.TimeWait, file)
				}
			}
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, filepath.Base(file)) {
				t.Errorf("log: got %q, want one warning", got)
			}
		})
	}
}

// TestTimeOffsetUnknown checks that no port counts as free too early where it is not known when a second of the kernel's
// begins.
func TestTimeOffsetUnknown(t *testing.T) {
	var none *fault
	known, _ := faultyScanner(t, &none)
	removeProc(t, known.cfg.Proc, "sys/net/ipv4/tcp_tw_reuse_delay")
	cfg := known.cfg
	var log bytes.Buffer
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	writeProc(t, cfg.Proc, "self/timens_offsets", "none\n")
	unknown := newScanner(t, cfg)
	for want, s := range map[bool]*Scanner{false: known, true: unknown} {
		ns, err := s.proc.Namespace()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		settings, err := s.readTCPSettings(ns, pool.Settings{})
		if err != nil || settings.TWReuseDelay != 0 || settings.TWReuseLate != (want || s.kernel.before(4, 19)) {
			t.Errorf("got %+v, %v, want late reuse %v", settings, err, want)
		}
	}
	if !strings.Contains(log.String(), "The offset of the time namespace is not known") {
		t.Errorf("log: %q", log.String())
	}
}

// TestDetailsCutShort has no time left for what a Report is true without. Each time, the Snapshot says that another scan may tell.
func TestDetailsCutShort(t *testing.T) {
	timestamps := answerTimestamps(true)
	s, _ := detailsScanner(t, &timestamps)
	if err := os.Remove(filepath.Join(s.cfg.Proc, "sys/net/ipv4/tcp_tw_reuse_delay")); err != nil {
		t.Fatal(err)
	}
	dials, most := 0, 100
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		if dials++; dials > most {
			return nil, os.ErrDeadlineExceeded
		}
		fd, err := sockdiagtest.Dial(func(r sockdiagtest.Request) [][]byte {
			if r.Type == unix.SOCK_DIAG_BY_FAMILY && r.Body[2] != 0 {
				return timestamps(r)
			}
			if r.Sequence == 1 { // the listeners
				return [][]byte{r.Done(0)}
			}
			return append(finWait2Rows(r), r.Done(0))
		})
		if err != nil {
			return nil, err
		}
		return sockdiag.NewConn(fd, buffer), nil
	}
	scan := func(name string, cutShort bool, finWait2 pool.Fact) {
		t.Helper()
		dials = 0
		snapshot := s.Scan(t.Context())
		tcp := snapshot.Namespaces[0].TCP
		if tcp.Outcome != Collected || snapshot.CutShort() != cutShort || tcp.Report.Settings.ReuseFinWait2 != finWait2 {
			t.Errorf("%s: %v, %v, cut short %v, FIN_WAIT2 %v", name, tcp.Outcome, tcp.Err, snapshot.CutShort(), tcp.Report.Settings.ReuseFinWait2)
		}
	}
	done := make(chan struct{})
	s.finWait2, s.trial = pool.Unknown, &finWait2Trial{done: done, fact: pool.Yes}
	s.cfg.Timeout = 200 * time.Millisecond
	scan("the trial goes on", true, pool.Unknown)
	s.cfg.Timeout = time.Minute
	close(done)
	most = 2
	scan("no time to read the sockets once more", true, pool.Unknown)
	most = 100
	scan("all", false, pool.Yes)
}

// finWait2Rows returns rows of one connection, and of mini-sockets in FIN_WAIT2 that are old.
func finWait2Rows(r sockdiagtest.Request) [][]byte {
	rows := [][]byte{row(r)}
	for i := range manyReusable {
		local := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(40001+i))
		mini := r.Socket(uint8(tcpstate.FinWait2), local, netip.MustParseAddrPort("10.0.0.2:80"), 30000)
		mini[unix.SizeofNlMsghdr+2] = 3 // idiag_timer of inet_twsk_diag_fill
		rows = append(rows, mini)
	}
	return rows
}
