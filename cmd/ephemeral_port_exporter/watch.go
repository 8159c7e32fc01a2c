package main

import (
	"context"
	"os/signal"
	"syscall"
	"time"

	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/scan"
)

// watch scans at the interval of --watch and draws what it finds, until SIGINT or SIGTERM. A scan that fails is a page that says
// so. Between two scans there is as much time as the last one took, at least: they take half of a CPU at most.
func watch(w *screen, flags *flags, scanner *scan.Scanner) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	past := &history.History{}
	page, view, collect := newStatus(flags, past), flags.view(), past.Scan(scanner.Scan)
	failed := make(chan error, 1)
	go func() {
		for {
			start := time.Now()
			snapshot := collect(ctx)
			took := time.Since(start)
			if err := w.draw(page, &snapshot, view); err != nil {
				failed <- err
				return
			}
			time.Sleep(max(*flags.watch-time.Since(start), took))
		}
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done(): // also in the middle of a scan
		return nil
	}
}
