// Command ephemeral_port_exporter is a Prometheus exporter that tells for every
// destination how close the next connect() is to failing for want of a port.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"

	"ephemeral_port_exporter/collector"
	"ephemeral_port_exporter/collector/capability"
	"ephemeral_port_exporter/collector/connectfail"
	"ephemeral_port_exporter/collector/sockdiag"
)

const name = "ephemeral_port_exporter"

func main() {
	app := kingpin.New(name, "Prometheus exporter that tells for every destination how close the next connect() is to failing for want of a port.")
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
	flags := addFlags(app)
	kingpin.MustParse(app.Parse(os.Args[1:]))
	if err := flags.validate(); err != nil {
		app.Fatalf("%v, try --help", err)
	}

	logger := promslog.New(flags.log)
	if err := run(flags, logger); err != nil {
		logger.Error("Exporter failed", "err", err)
		os.Exit(1)
	}
}

// run serves until SIGTERM or SIGINT.
func run(flags *flags, logger *slog.Logger) error {
	logger.Info("Starting "+name, "version", version.Info())
	logger.Info("Build context", "build_context", version.BuildContext())

	c := collector.New(collector.Config{
		Proc:           *flags.procfs,
		Limits:         collector.Limits{MinPorts: *flags.minPorts, Most: *flags.limit},
		TimeWaitLength: *flags.timeWaitLength,
		Timeout:        *flags.collectTimeout,
		Logger:         logger,

		Scope:            flags.scope(),
		NamespaceFolders: slices.Concat(defaultFolders, *flags.namespaceFolders),
	})
	if err := checkCapabilities(flags); err != nil {
		return err
	}
	if err := firstCollection(c, flags, logger); err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(c, versioncollector.NewCollector(name))
	if *flags.connectFailures {
		probe, err := connectfail.Attach() // until the process ends
		if err != nil {
			return fmt.Errorf("--connect-failures cannot be had: %w", err)
		}
		registry.MustRegister(collector.NewConnectFailures(probe.Counts, *flags.limit, logger))
	}
	if !*flags.disableExporterMetrics {
		registry.MustRegister(
			collectors.NewGoCollector(),
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		)
	}
	server, err := newServer(flags, registry, logger)
	if err != nil {
		return err
	}
	return serve(server, flags.web, logger)
}

// checkCapabilities returns what --namespaces needs and the process does not have.
func checkCapabilities(flags *flags) error {
	needed := map[collector.Scope][]capability.Capability{
		collector.ScopeNamed: {capability.SysAdmin},
		collector.ScopeAll:   {capability.SysAdmin, capability.SysPtrace},
	}
	missing, err := capability.Missing(needed[flags.scope()]...)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("--namespaces=%s enters other network namespaces and needs %s: give the process that, or run with --namespaces=self",
			*flags.namespaces, capability.Join(missing))
	}
	return nil
}

// firstCollection tells the user what this host has, or that nothing will ever be
// had here. What may be better at the next scrape is no reason to stop.
func firstCollection(c *collector.Collector, flags *flags, logger *slog.Logger) error {
	r, err := c.Report()
	if err := hopeless(err, *flags.procfs); err != nil {
		return err
	}
	if err != nil {
		logger.Error("First collection failed, the next scrape tries again", "err", err)
		return nil
	}

	ports := r.Settings.PortRange
	logger.Info("Watching ephemeral ports",
		"range_low", ports.Low, "range_high", ports.High, "capacity", r.CapacityPorts,
		"sockets", r.Sockets, "duration", r.Duration)
	for _, port := range flags.listenPorts() {
		if ports.Contains(port) {
			logger.Warn("The listen port lies in the ephemeral range: it costs every destination a port, and an outgoing connection may take it before the exporter starts",
				"port", port, "range_low", ports.Low, "range_high", ports.High)
		}
	}
	return nil
}

// hopeless explains an error that will be there at every collection. It returns nil for
// any other.
func hopeless(err error, procfs string) error {
	switch {
	// First, for these wrap ENOENT as absent files do.
	case errors.Is(err, sockdiag.ErrUnsupported), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("this host cannot be watched: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("this host cannot be watched, --path.procfs=%s must be a mounted proc file system: %w", procfs, err)
	default:
		return nil
	}
}

// serve runs the server until it fails or the process is told to end.
func serve(server *http.Server, webConfig *web.FlagConfig, logger *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	failed := make(chan error, 1)
	go func() { failed <- web.ListenAndServe(server, webConfig, logger) }()

	select {
	case err := <-failed:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	logger.Info("Ending on a signal")
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		logger.Warn("Scrapes were cut off at the end", "err", err)
	}
	return nil
}

// shutdownTimeout is how long a scrape in progress may take after SIGTERM.
const shutdownTimeout = 5 * time.Second
