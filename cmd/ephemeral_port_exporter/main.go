// Command ephemeral_port_exporter is a Prometheus exporter. It shows for every destination how
// close connect() is to failing because no ephemeral port is free.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/version"
	toolkit "github.com/prometheus/exporter-toolkit/web"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/logging"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/web"
)

const name = "ephemeral_port_exporter"

func main() {
	setRuntime()
	setVersion()
	app := kingpin.New(name, "Prometheus exporter that shows how close connect() is to failing because no ephemeral port is free, by destination.")
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
	app.Terminate(func(code int) { os.Exit(usageCode(os.Args[1:], code)) })
	flags := addFlags(app)
	_, err := app.Parse(os.Args[1:])
	if err == nil {
		err = flags.validate()
	}
	if err != nil {
		app.Fatalf("%v, try --help", err)
	}

	flags.log.Writer = logging.Lines(os.Stderr)
	log := logging.New(promslog.New(flags.log).Handler())
	logger := slog.New(log.Handler())
	slog.SetDefault(logger) // what libraries log is within the same bounds
	level := advice.Calm
	if *flags.status {
		level, err = runStatus(flags, logger)
	} else {
		err = run(flags, logger)
	}
	if err != nil {
		logger.Error("Exporter failed", "err", err)
	}
	log.Close(logTimeout)
	os.Exit(exitCode(*flags.failOn, level, err))
}

// setRuntime sets what Go takes of the host, unless the environment does.
func setRuntime() {
	// Each further CPU would take 0.15 MB of memory, and be woken for garbage collection. With only one, Go would hand each system call of
	// more than 20 µs over to another thread: a scan of many sockets is nothing but these, and would take a tenth more.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(min(2, runtime.GOMAXPROCS(0)))
	}
	// As Prometheus does. Most of the memory are tables without pointers, which cost garbage collection nothing.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(75)
	}
}

// logTimeout is how long the end waits for the reader of the log.
const logTimeout = time.Second

// run serves until SIGTERM or SIGINT.
func run(flags *flags, logger *slog.Logger) error {
	// A terminal that closes, or a reader of the log that ends, is no reason to end.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	logger.Info("Starting "+name, "version", version.Info())
	logger.Info("Build context", "build_context", version.BuildContext())

	scanner, err := scan.New(flags.scanConfig(logger))
	if err != nil {
		return err
	}
	dropCapabilities(scanner, false, logger)
	past := &history.History{}
	if err := firstScan(scanner, past, flags, logger); err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(versioncollector.NewCollector(name))
	if !*flags.disableExporterMetrics {
		registry.MustRegister(
			collectors.NewGoCollector(),
			newProcessCollector(),
		)
	}
	server := web.New(flags.webConfig(registry, scanner, past, logger))
	// All listeners are open when the server begins to serve the first.
	var drop sync.Once
	base := server.BaseContext
	server.BaseContext = func(listener net.Listener) context.Context {
		drop.Do(func() { dropCapabilities(scanner, true, logger) })
		if page := pageURL(listener); page != "" {
			logger.Info("Serving the status page", "page", page)
		}
		return base(listener)
	}
	return serve(server, flags.web, logger)
}

// dropCapabilities gives up the capabilities that only the start needs.
func dropCapabilities(scanner *scan.Scanner, listening bool, logger *slog.Logger) {
	if err := scanner.DropCapabilities(listening); err != nil && listening {
		logger.Warn("The process keeps capabilities that it does not need", "err", err)
	}
}

// firstScan logs the ports of this host. It returns an error if every scrape would fail. A failure
// that may not happen at the next scrape is only logged.
func firstScan(scanner *scan.Scanner, past *history.History, flags *flags, logger *slog.Logger) error {
	snapshot, err := scanner.Check()
	if err != nil {
		return err
	}
	past.Record(&snapshot)
	self := snapshot.Namespaces[0]
	if self.TCP.Err != nil {
		logger.Error("First collection failed, the next scrape tries again", "err", self.TCP.Err)
		return nil
	}

	ports := self.TCP.Report.Settings.PortRange
	logger.Info("Watching ephemeral ports",
		"range_low", ports.Low, "range_high", ports.High, "capacity", self.TCP.Report.CapacityPorts,
		"sockets", self.TCP.Report.Sockets, "duration", self.TCP.Duration)
	if self.TCP.Report.CapacityPorts == 0 {
		logger.Warn("No port is left for outgoing connections: connect() fails unless its client has bound a port",
			"range_low", ports.Low, "range_high", ports.High, "reserved", self.TCP.Report.ReservedPorts, "blocked", self.TCP.Report.BlockedPorts)
	}
	for _, port := range flags.listenPorts() {
		if ports.Contains(port) {
			logger.Warn("The listen port is in the ephemeral range: no destination can use it, and an outgoing connection may hold it when the exporter starts",
				"port", port, "range_low", ports.Low, "range_high", ports.High)
		}
	}
	return nil
}

// serve runs the server until it fails, or until SIGTERM or SIGINT.
func serve(server *http.Server, flags *toolkit.FlagConfig, logger *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	listeners, err := listen(flags)
	if err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- toolkit.Serve(l, server, flags, logger) }()
	}

	select {
	case err := <-failed:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	logger.Info("Stopping on a signal")
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		logger.Warn("Stopped before all scrapes were answered", "err", err)
	}
	return nil
}

// listen opens the listeners that the flags name. They close when the server ends.
func listen(flags *toolkit.FlagConfig) (listeners []net.Listener, err error) {
	if *flags.WebSystemdSocket {
		if listeners, err = activation.Listeners(); err == nil && len(listeners) == 0 {
			err = errors.New("no socket of systemd")
		}
	} else {
		for _, address := range *flags.WebListenAddresses {
			listener, err := net.Listen("tcp", address)
			if err != nil {
				return nil, err
			}
			listeners = append(listeners, listener)
		}
	}
	for i, l := range listeners {
		listeners[i] = web.Listener{Listener: l}
	}
	return listeners, err
}

// shutdownTimeout is how long a scrape in progress may take after SIGTERM or SIGINT.
const shutdownTimeout = 5 * time.Second
