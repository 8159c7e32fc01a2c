package main

import (
	"fmt"
	"io"
	"os"

	"github.com/prometheus/common/version"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
)

// newStatus returns the status page of this host.
func newStatus(flags *flags) *status.Status {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return status.New(status.Info{Host: host, Version: version.Info(), MetricsPath: *flags.telemetryPath})
}

// printStatus scans once and writes the status page as text. The error is that of the scan.
func printStatus(w io.Writer, flags *flags, scanner *scan.Scanner) error {
	snapshot, err := scanner.Check()
	if writeErr := newStatus(flags).Write(w, &snapshot, status.View{Format: status.Text}); writeErr != nil {
		return fmt.Errorf("write the status: %w", writeErr)
	}
	if err == nil {
		err = snapshot.Namespaces[0].Err
	}
	if err != nil {
		return fmt.Errorf("collection failed: %w", err)
	}
	return nil
}
