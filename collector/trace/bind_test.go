//go:build linux

package trace

import (
	"bufio"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// A caller makes a socket and calls what searches for a port. The socket stays open after a success.
type caller struct {
	name   string
	family int
	kind   int // SOCK_STREAM or SOCK_DGRAM
	call   func(fd int) error
	errno  unix.Errno // when no port is free
	counts bindCount  // the zero value if nothing is to be counted
}

// A bindCount is what identifies a count of binds.
type bindCount struct {
	call   Call
	source string
}

// bindTo binds to an address, of which a port of 0 is any.
func bindTo(address string) func(fd int) error {
	return func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return err
		}
		to := netip.MustParseAddrPort(address)
		return unix.Bind(fd, netnstest.Sockaddr(to, domain == unix.AF_INET6 && to.Addr().Is4()))
	}
}

// binders are callers for each way to get a port by a bind. Each address has a pool of its own.
var binders = []caller{
	{"TCP", unix.AF_INET, unix.SOCK_STREAM, bindTo("127.81.0.1:0"), unix.EADDRINUSE, bindCount{BindTCP, "127.81.0.1"}},
	{"TCP, another address", unix.AF_INET, unix.SOCK_STREAM, bindTo("127.81.0.2:0"), unix.EADDRINUSE, bindCount{BindTCP, "127.81.0.2"}},
	{"TCP, mapped", unix.AF_INET6, unix.SOCK_STREAM, bindTo("127.81.0.3:0"), unix.EADDRINUSE, bindCount{BindTCP, "127.81.0.3"}},
	{"TCP, IPv6", unix.AF_INET6, unix.SOCK_STREAM, bindTo("[2001:db8::1]:0"), unix.EADDRINUSE, bindCount{BindTCP, "2001:db8::1"}},
	{"TCP, no address", unix.AF_INET, unix.SOCK_STREAM, bindTo("0.0.0.0:0"), unix.EADDRINUSE, bindCount{BindTCP, "0.0.0.0"}},
	{"TCP, listen", unix.AF_INET, unix.SOCK_STREAM, func(fd int) error { return unix.Listen(fd, 1) }, unix.EADDRINUSE, bindCount{BindTCP, "0.0.0.0"}},
	{"TCP, port", unix.AF_INET, unix.SOCK_STREAM, bindTo("127.81.0.1:40000"), unix.EADDRINUSE, bindCount{}},
	{"UDP", unix.AF_INET, unix.SOCK_DGRAM, bindTo("127.81.0.1:0"), unix.EADDRINUSE, bindCount{BindUDP, "127.81.0.1"}},
	{"UDP, mapped", unix.AF_INET6, unix.SOCK_DGRAM, bindTo("127.81.0.3:0"), unix.EADDRINUSE, bindCount{BindUDP, "127.81.0.3"}},
	{"UDP, IPv6", unix.AF_INET6, unix.SOCK_DGRAM, bindTo("[2001:db8::1]:0"), unix.EADDRINUSE, bindCount{BindUDP, "2001:db8::1"}},
	{"UDP, no address", unix.AF_INET6, unix.SOCK_DGRAM, bindTo("[::]:0"), unix.EADDRINUSE, bindCount{BindUDP, "::"}},
	{"UDP, port", unix.AF_INET, unix.SOCK_DGRAM, bindTo("127.81.0.1:40000"), unix.EADDRINUSE, bindCount{}},
	{"UDP, connect", unix.AF_INET, unix.SOCK_DGRAM, func(fd int) error {
		return unix.Connect(fd, netnstest.Sockaddr(netip.MustParseAddrPort("127.0.0.1:7040"), false))
	}, unix.EAGAIN, bindCount{BindUDP, "0.0.0.0"}},
	{"UDP, send", unix.AF_INET6, unix.SOCK_DGRAM, func(fd int) error {
		return unix.Sendto(fd, []byte("x"), 0, netnstest.Sockaddr(netip.MustParseAddrPort("[::1]:7040"), false))
	}, unix.EAGAIN, bindCount{BindUDP, "::"}},
}

// open makes a socket and has the caller get a port. After an error, the socket is closed.
func (c caller) open(t *testing.T) error {
	t.Helper()
	fd, err := unix.Socket(c.family, c.kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.call(fd); err != nil {
		unix.Close(fd)
		return err
	}
	t.Cleanup(func() { unix.Close(fd) })
	return nil
}

// binds returns how many binds of the test's namespace have failed since the last call.
func binds(t *testing.T, p *counter) map[bindCount]uint64 {
	t.Helper()
	counts, _, err := p.Failures.Counts(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	got := map[bindCount]uint64{}
	for _, c := range counts {
		if c.Call == Connect || err == nil && p.NoNamespaces == nil && c.Namespace != cookie {
			continue
		}
		if c.Destination.IsValid() {
			t.Errorf("a bind has a destination: %+v", c)
		}
		got[bindCount{c.Call, c.Source.String()}] += c.Events
	}
	return got
}

// tracesFunctions reports whether the kernel can trace the function for which TCP sockets are bound. Where it can, on
// amd64, trampolines of BPF can too.
func tracesFunctions(t *testing.T) bool {
	t.Helper()
	file, err := os.Open(filepath.Join(netnstest.Tracefs(t), "available_filter_functions"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return false // the kernel has no functions to trace, or forbids it
	} else if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, _, _ := strings.Cut(lines.Text(), " "); name == "inet_csk_get_port" {
			return runtime.GOARCH == "amd64"
		}
	}
	return false
}

// TestBinds checks that a Probe counts as many failures as the programs see, by protocol and address, for each way to
// get a port without a destination, and none where a given port is in use. Where the kernel cannot, it says so, and
// counts none.
func TestBinds(t *testing.T) {
	p := attachProbe(t)
	if tracesFunctions(t) && p.NoBinds != nil {
		t.Fatalf("the kernel can trace functions, but: %v", p.NoBinds)
	}
	for _, c := range binders {
		t.Run(c.name, func(t *testing.T) {
			netnstest.New(t)
			smallRange(t)
			const ports, tries = 2, 12
			granted, refused := 0, uint64(0)
			for range tries {
				switch err := c.open(t); {
				case err == nil:
					granted++
				case errors.Is(err, c.errno):
					refused++
				default:
					t.Fatalf("%v, want %v", err, c.errno)
				}
			}
			if c.counts != (bindCount{}) && granted != ports {
				t.Errorf("%d got a port, want %d", granted, ports)
			}
			want := map[bindCount]uint64{}
			if c.counts != (bindCount{}) && p.NoBinds == nil {
				want[c.counts] = refused
			}
			if diff := cmp.Diff(want, binds(t, p), cmp.AllowUnexported(bindCount{})); diff != "" {
				t.Errorf("failed binds (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBindsAndConnects has binds and connects that fail from one address: each counts as what it is, in a table that is
// full too.
func TestBindsAndConnects(t *testing.T) {
	netnstest.LockTraces(t)
	for _, tt := range []struct {
		name  string
		slots uint32
		rest  Rest
	}{
		{"with slots", 256, Rest{}}, // also for what else fails on this host
		{"without", 1, Rest{Connects: 0, Binds: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.New(t)
			smallRange(t)
			probe, err := attach(tt.slots)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { probe.Close() })
			unlimited(t, probe)
			bind := caller{family: unix.AF_INET, kind: unix.SOCK_STREAM, call: bindTo("198.51.100.1:0")}
			for range 2 {
				if err := bind.open(t); err != nil {
					t.Fatal(err)
				}
			}
			client := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:7041")}
			for range 5 {
				if err := dial(client); !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Fatalf("connect(): %v", err)
				}
			}
			for range 3 {
				if err := bind.open(t); !errors.Is(err, unix.EADDRINUSE) {
					t.Fatalf("bind(): %v", err)
				}
			}
			counts, rest, err := probe.Failures.Counts(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			got := map[bindCount]uint64{}
			for _, c := range counts {
				if c.Call != Connect || c.Destination == client.Destination {
					got[bindCount{c.Call, c.Source.String()}] += c.Events
				}
			}
			want := map[bindCount]uint64{{Connect, "198.51.100.1"}: 5, {BindTCP, "198.51.100.1"}: 3}
			if probe.NoBinds != nil {
				tt.rest.Binds = 0
				delete(want, bindCount{BindTCP, "198.51.100.1"})
			}
			// Tests of other packages fail to connect too, and from the same address.
			if tt.slots == 1 {
				if n := got[bindCount{Connect, "198.51.100.1"}] + rest.Connects; n < 5 || rest.Binds < tt.rest.Binds {
					t.Errorf("%d connects, and without a slot %+v, want at least 5 and %+v", n, rest, tt.rest)
				}
				return
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(bindCount{})); diff != "" {
				t.Errorf("failures (-want +got):\n%s", diff)
			}
			if rest != tt.rest {
				t.Errorf("without a slot: %+v, want %+v", rest, tt.rest)
			}
		})
	}
}
