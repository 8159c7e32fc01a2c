package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/version"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
	"ephemeral_port_exporter/collector/web"
)

// newStatus returns the status page of this host, which remembers past if that is not nil.
func newStatus(flags *flags, past *history.History) *status.Status {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return status.New(status.Info{
		Host: host, Version: version.Version, Revision: version.GetRevision(), MetricsPath: *flags.telemetryPath, History: past,
		Modes: status.Modes{Namespaces: scan.Scope(*flags.namespaces), Exact: *flags.exact, SNAT: *flags.snat, Trace: *flags.trace},
	})
}

// pageURL returns where a browser finds the status page of a server that got this listener. It is empty if
// that is not TCP.
func pageURL(listener net.Listener) string {
	address, ok := listener.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	page := url.URL{Scheme: "https", Host: address.String(), Path: web.StatusPath}
	if _, ok := listener.(web.Listener); ok { // TLS has one of its own around it
		page.Scheme = "http"
	}
	if address.IP.IsUnspecified() {
		host, err := os.Hostname()
		if err != nil {
			host = "localhost"
		}
		page.Host = net.JoinHostPort(host, strconv.Itoa(address.Port))
	}
	return page.String()
}

// Values of --fail-on.
const (
	failOnWarning  = "warning"
	failOnCritical = "critical"
)

// Exit codes. Those with --fail-on follow the guidelines of monitoring-plugins.org. Without it, all that fails is codeFailed, or
// codeUnusable if it fails again until somebody changes the host or the flags: EX_CONFIG of sysexits.h.
const (
	codeOK       = 0
	codeFailed   = 1
	codeUnusable = 78
	codeWarning  = 1
	codeCritical = 2
	codeUnknown  = 3
)

// exitCode returns the exit code for a value of --fail-on, given the level of the headline and what failed.
func exitCode(failOn string, level advice.Level, err error) int {
	var permanent *scan.PermanentError
	switch {
	case failOn == "" && errors.As(err, &permanent):
		return codeUnusable
	case failOn == "" && err != nil:
		return codeFailed
	case failOn == "":
		return codeOK
	case level >= advice.Critical:
		return codeCritical
	case level == advice.Unknown || err != nil:
		return codeUnknown
	case level == advice.Warning && failOn == failOnWarning:
		return codeWarning
	default:
		return codeOK
	}
}

// usageCode returns the exit code for arguments with which the exporter does not run: a wrong one is no warning of a check.
func usageCode(args []string, code int) int {
	isCheck := slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--fail-on") })
	switch {
	case code == codeOK: // --help
		return codeOK
	case isCheck:
		return codeUnknown
	default:
		return codeUnusable
	}
}

// runStatus prints the status page once, or again and again, and returns the level of its headline.
func runStatus(flags *flags, logger *slog.Logger) (advice.Level, error) {
	if err := flags.log.Level.Set("error"); err != nil {
		return advice.Unknown, err
	}
	w := newScreen(os.Stdout, os.Getenv, *flags.watch > 0)
	if w.live && isTerminal(os.Stderr) {
		logger = slog.New(slog.DiscardHandler) // the page has the errors
	}
	scanner, err := scan.New(flags.scanConfig(logger))
	if err != nil {
		return advice.Unknown, err
	}
	if *flags.watch > 0 {
		dropCapabilities(scanner, true, logger)
		return advice.Calm, watch(w, flags, scanner)
	}
	return printStatus(w, flags, scanner)
}

// betweenLooks is the time between two scans that show how clients choose ports.
const betweenLooks = time.Second

// printStatus scans once, or once more if that may tell what is not known, and prints the status page. It returns the level
// of the headline. The error is that of the scan.
func printStatus(w *screen, flags *flags, scanner *scan.Scanner) (advice.Level, error) {
	snapshot, err := scanner.Check()
	if err == nil && snapshot.Unsure() {
		time.Sleep(betweenLooks)
		snapshot, err = scanner.Check()
	}
	view := flags.view()
	level := status.LevelOf(&snapshot, view)
	if writeErr := w.draw(newStatus(flags, nil), &snapshot, view); writeErr != nil {
		return level, writeErr
	}
	if err == nil {
		err = snapshot.Namespaces[0].TCP.Err
	}
	if err != nil {
		return level, fmt.Errorf("collection failed: %w", err)
	}
	return level, nil
}

// view returns what of a snapshot --status shows, and how.
func (f *flags) view() status.View {
	return status.View{Format: cmp.Or(status.Format(*f.format), status.Text), Destination: *f.destination}
}
