//go:build linux

package netnstest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envHold tells a re-executed test binary which connections to hold.
const envHold = "NETNSTEST_HOLD"

// A Holding is a number of connections that a child process keeps open.
type Holding struct {
	Client Client
	UDP    *UDP // UDP sockets instead, unless nil
	Count  int

	// Each connection uses the next source port, or the next destination port.
	NextSourcePort, NextDestinationPort bool
}

// HoldInChild opens connections in a child process, which holds them until the test ends. It is
// for tests that need more descriptors than one process may have. The package's TestMain must
// call Main.
func HoldInChild(tb testing.TB, holdings ...Holding) {
	tb.Helper()
	hold(tb, nil, holdings)
}

// hold starts the child process. It returns its process ID.
func hold(tb testing.TB, attr *syscall.SysProcAttr, holdings []Holding) (pid int) {
	tb.Helper()
	spec, err := json.Marshal(holdings)
	if err != nil {
		tb.Fatalf("describe connections: %v", err)
	}
	cmd := exec.Command("/proc/self/exe")
	// The race detector delays the end of each process by a second.
	cmd.Env = append(os.Environ(), envHold+"="+string(spec), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatalf("pipe to child: %v", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatalf("pipe from child: %v", err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start child: %v", err)
	}
	tb.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("child that holds connections: %v", err)
		}
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		tb.Fatalf("child did not open its connections: %v", err)
	}
	return cmd.Process.Pid
}

// holdMain is the child process. It returns the exit code.
func holdMain(spec string) int {
	var holdings []Holding
	err := json.Unmarshal([]byte(spec), &holdings)
	if err == nil {
		err = raiseOpenFiles()
	}
	for _, h := range holdings {
		if err == nil {
			err = h.open()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnstest: hold connections:", err)
		return 1
	}

	fmt.Println("ready")
	// This returns when the parent closes its end or dies. The connections are still in
	// repair mode: they leave no TIME_WAIT when this process ends.
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// open opens the connections. They stay open until the process ends.
func (h Holding) open() error {
	c := h.Client
	for n := range h.Count {
		if h.UDP != nil {
			if _, err := h.UDP.Open(); err != nil {
				return fmt.Errorf("UDP socket %d: %w", n, err)
			}
			continue
		}
		if _, err := c.Connect(); err != nil {
			return fmt.Errorf("connection %d from %v to %v: %w", n, c.Source, c.Destination, err)
		}
		if h.NextSourcePort {
			c.Source = netip.AddrPortFrom(c.Source.Addr(), c.Source.Port()+1)
		}
		if h.NextDestinationPort {
			c.Destination = netip.AddrPortFrom(c.Destination.Addr(), c.Destination.Port()+1)
		}
	}
	return nil
}

// raiseOpenFiles raises the limit of open files of this process as far as it may.
func raiseOpenFiles() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	lim.Cur = lim.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
}
