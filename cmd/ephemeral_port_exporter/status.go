package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/common/version"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
	"ephemeral_port_exporter/collector/web"
)

// newStatus returns the status page of this host.
func newStatus(flags *flags) *status.Status {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return status.New(status.Info{Host: host, Version: version.Version, Revision: version.GetRevision(), MetricsPath: *flags.telemetryPath})
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

// runStatus prints the status page once, or again and again.
func runStatus(flags *flags, logger *slog.Logger) error {
	if err := flags.log.Level.Set("error"); err != nil {
		return err
	}
	w := newScreen(os.Stdout, os.Getenv("TERM"), *flags.watch > 0)
	if w.live && isTerminal(os.Stderr) {
		logger = slog.New(slog.DiscardHandler) // the page has the errors
	}
	scanner, err := scan.New(flags.scanConfig(logger))
	if err != nil {
		return err
	}
	if *flags.watch > 0 {
		dropCapabilities(scanner, true, logger)
		return watch(w, flags, scanner)
	}
	return printStatus(w, flags, scanner)
}

// betweenLooks is the time between two scans that show how clients choose ports.
const betweenLooks = time.Second

// printStatus scans once, or once more if that may tell what is not known, and prints the status page. The error is that
// of the scan.
func printStatus(w *screen, flags *flags, scanner *scan.Scanner) error {
	snapshot, err := scanner.Check()
	if err == nil && snapshot.Unsure() {
		time.Sleep(betweenLooks)
		snapshot, err = scanner.Check()
	}
	if writeErr := w.draw(newStatus(flags), &snapshot, flags.view()); writeErr != nil {
		return writeErr
	}
	if err == nil {
		err = snapshot.Namespaces[0].TCP.Err
	}
	if err != nil {
		return fmt.Errorf("collection failed: %w", err)
	}
	return nil
}

// view returns what of a snapshot --status shows, and how.
func (f *flags) view() status.View {
	return status.View{Format: cmp.Or(status.Format(*f.format), status.Text), Destination: *f.destination}
}
