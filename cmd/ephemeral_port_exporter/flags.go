package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	webflag "github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
	"ephemeral_port_exporter/collector/web"
)

// defaultAddress has a port outside the default ephemeral range, 32768-60999.
const defaultAddress = ":10149"

// flags are the values of the command line flags.
type flags struct {
	web *toolkit.FlagConfig
	log *promslog.Config

	status      *bool
	failOn      *string
	format      *string
	destination *netip.AddrPort
	watch       *time.Duration

	telemetryPath          *string
	disableExporterMetrics *bool
	maxRequests            *int

	namespaces     *string
	namespaceDirs  *[]string
	namespaceLimit *int
	exact          *bool
	trace          *bool
	snat           *bool
	snatPorts      *portRanges
	nodePorts      *portRanges
	snatTakeover   *bool

	procfs         *string
	cgroup         *string
	podLogs        *string
	bpffs          *string
	minPorts       *int
	limit          *int
	timeWaitLength *time.Duration
	collectTimeout *time.Duration
}

// addFlags declares all flags.
func addFlags(app *kingpin.Application) *flags {
	f := &flags{
		web: webflag.AddFlags(app, defaultAddress),
		log: &promslog.Config{},

		status: app.Flag("status",
			"Collect once, print the status page as text and exit: with status 0, or 1 if the collection failed. Logs only errors.").Bool(),
		failOn: optionFlag(app, "fail-on",
			"With --status: exit as a monitoring plugin does, with status 0, 1 for a warning, 2 if it is critical, 3 if it is not known. With critical, a warning gives 0.", failOnWarning, failOnCritical),
		format: optionFlag(app, "format",
			"With --status: text, as without this flag, or json.", string(status.Text), string(status.JSON)),
		destination: destinationFlag(app, "destination",
			"With --status: show and judge only this destination, ADDRESS or ADDRESS:PORT."),
		watch: durationFlag(app, "watch",
			"With --status: collect at this interval and print the page anew, in place on a terminal, until SIGINT or SIGTERM. 1s or more.", ""),

		telemetryPath: app.Flag("web.telemetry-path",
			"Path under which to expose metrics.").Default("/metrics").String(),
		disableExporterMetrics: app.Flag("web.disable-exporter-metrics",
			"Leave out metrics about the exporter itself (go_*, process_*, promhttp_*).").Bool(),
		maxRequests: countFlag(app, "web.max-requests",
			"Maximum number of answers that are made at once, besides one collection. Further ones wait for their turn. Scrapes at the same time share a collection. Those that ask for the same share an answer, which counts once. 0 means no limit.", "2"),

		namespaces: choiceFlag(app, "namespaces",
			"Network namespaces to watch besides the exporter's own. self: none. named: mounted ones; needs CAP_SYS_ADMIN. all: mounted ones and those of all processes; needs CAP_SYS_ADMIN and CAP_SYS_PTRACE.",
			string(scan.ScopeSelf), string(scan.ScopeNamed), string(scan.ScopeAll)),
		namespaceDirs: app.Flag("namespaces.dir",
			"Directory of mounted network namespaces, in addition to /run/netns and /run/docker/netns. Repeatable.").Strings(),
		namespaceLimit: countFlag(app, "namespaces.limit",
			"Maximum number of other network namespaces that one scrape enters. Busy ones come first, the others take turns.", "1024"),
		exact: app.Flag("exact",
			"List sockets with an eBPF program instead of a dump. The program sees which ports are bound, and which connections in TIME_WAIT used timestamps: connect() can get each port that counts as free. Needs CAP_BPF, CAP_PERFMON and a kernel with BTF, Linux 5.9 or later.").Bool(),
		trace: app.Flag("trace",
			"Count what the kernel tells as it happens, in all network namespaces of the host: the connects that fail because no port is free, the binds where the kernel can tell, and the connections that this host closes first, by who closed them. Uses eBPF programs; needs CAP_BPF, CAP_PERFMON and a kernel with BTF, Linux 5.10 or later.").Bool(),
		snat: app.Flag("snat",
			"Count the ports that source NAT (masquerading) uses, by translated address and destination. Needs CAP_NET_ADMIN.").Bool(),
		snatPorts: portRangesFlag(app, "snat.port-range",
			"Ports that source NAT chooses from: those that its rules name, or the default. Repeatable, as for the blocks of MAP-E. Clients with a port below 1024 have pools of their own, which are not counted.", defaultSNATPorts),
		snatTakeover: app.Flag("snat.takeover",
			"The kernel is older than Linux 6.5, but has the change that lets new TCP connections take over the ports of closed ones. Without that change in the kernel, ports in use count as free.").Bool(),

		nodePorts: portRangesFlag(app, "node-ports",
			"Ports of the services of Kubernetes on each node, --service-node-port-range of the API server. Where a kubelet listens, the status page warns if they are in the ephemeral range. Cures keep them out. Cilium's source NAT has the ports above them. Repeatable.", "30000-32767"),

		procfs: app.Flag("path.procfs",
			"Mount point of procfs.").Default("/proc").String(),
		cgroup: app.Flag("path.cgroup",
			"Directory where cgroup2 is mounted, itself or in its subdirectory unified. It has the names of the owners of destinations. A container needs that of the host.").Default("/sys/fs/cgroup").String(),
		podLogs: app.Flag("path.pod-logs",
			"Directory in which kubelet has the logs of pods. The names in it are the names of pods, which the status page shows. No log is read.").Default(scan.DefaultPodLogs).String(),
		bpffs: app.Flag("path.bpffs",
			"Mount point of the BPF file system in which Cilium pins its maps. With --snat, the ports of its source NAT are read from them. A container needs that of the host. Empty: Cilium has no source NAT of its own, and its maps are not read.").Default("/sys/fs/bpf").String(),
		minPorts: countFlag(app, "destination.min-ports",
			"Give a destination, or a pool of source NAT, series of its own only if it holds at least this many ports. 0 means 0.5% of the ports that it can have, at least 10, or of a destination 100 connections without an answer. The status page lists the 20 in most danger whatever this is.", "0"),
		limit: countFlag(app, "destination.limit",
			"Maximum number of destinations with series of their own: those with the greatest utilization. The others are only summed up. The same limit applies to source addresses, to pools of source NAT, to series of failed connects and binds together, and to series of closes.", "256"),
		timeWaitLength: durationFlag(app, "time-wait.length",
			"Time that the kernel keeps a connection in TIME_WAIT: its constant TCP_TIMEWAIT_LEN. Change it only for a kernel that was built with another value. With a wrong value, reusable ports, close rates and ceilings are wrong.", "60s"),
		collectTimeout: durationFlag(app, "collect.timeout",
			"Maximum time for a collection. If Prometheus sends a shorter scrape timeout, that counts, less a second.", "5s"),
	}
	// Like promslogflag.AddFlags, but with errors that name the flag.
	f.log.Level, f.log.Format = promslog.NewLevel(), promslog.NewFormat()
	app.Flag(promslogflag.LevelFlagName, promslogflag.LevelFlagHelp).Default("info").
		SetValue(namedValue{promslogflag.LevelFlagName, f.log.Level})
	app.Flag(promslogflag.FormatFlagName, promslogflag.FormatFlagHelp).Default("logfmt").
		SetValue(namedValue{promslogflag.FormatFlagName, f.log.Format})
	return f
}

// scanConfig returns the configuration of the Scanner.
func (f *flags) scanConfig(logger *slog.Logger) scan.Config {
	return scan.Config{
		Proc:           *f.procfs,
		Cgroup:         *f.cgroup,
		PodLogs:        *f.podLogs,
		Limits:         pool.Limits{MinPorts: *f.minPorts, Most: *f.limit},
		TimeWaitLength: *f.timeWaitLength,
		Timeout:        *f.collectTimeout,
		Logger:         logger,
		Trials:         true,

		Scope:          scan.Scope(*f.namespaces),
		NamespaceDirs:  *f.namespaceDirs,
		NamespaceLimit: *f.namespaceLimit,

		Exact: *f.exact,
		Trace: *f.trace,

		SNAT:         *f.snat,
		SNATPorts:    f.snatPorts.ranges,
		BPFFS:        *f.bpffs,
		NodePorts:    f.nodePorts.ranges,
		SNATTakeover: *f.snatTakeover,
	}
}

// webConfig returns the configuration of the web server.
func (f *flags) webConfig(registry *prometheus.Registry, scanner *scan.Scanner, past *history.History, logger *slog.Logger) web.Config {
	return web.Config{
		Scan:     past.Scan(scanner.Scan),
		Port:     scanner.Port,
		Status:   newStatus(f, past),
		Registry: registry,

		MetricsPath:     *f.telemetryPath,
		ExporterMetrics: !*f.disableExporterMetrics,
		MaxRequests:     *f.maxRequests,
		CollectTimeout:  *f.collectTimeout,

		Logger: logger,
	}
}

// A namedValue is the value of a flag whose errors name the flag.
type namedValue struct {
	flag string
	kingpin.Value
}

// Set implements kingpin.Value.
func (n namedValue) Set(s string) error {
	if err := n.Value.Set(s); err != nil {
		return fmt.Errorf("--%s=%s: %w", n.flag, s, err)
	}
	return nil
}

// A choice is the value of a flag that accepts one of several words.
type choice struct {
	flag  string
	words []string
	value *string
}

// choiceFlag declares a flag whose default is the first of the words.
func choiceFlag(app *kingpin.Application, flag, help string, words ...string) *string {
	c := choice{flag: flag, words: words, value: new(string)}
	app.Flag(flag, help).Default(words[0]).HintOptions(words...).SetValue(c)
	return c.value
}

// optionFlag declares a flag that is empty unless it is given.
func optionFlag(app *kingpin.Application, flag, help string, words ...string) *string {
	c := choice{flag: flag, words: words, value: new(string)}
	app.Flag(flag, help).HintOptions(words...).SetValue(c)
	return c.value
}

// Set implements kingpin.Value.
func (c choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("--%s=%s: must be one of %s", c.flag, s, strings.Join(c.words, ", "))
	}
	*c.value = s
	return nil
}

// String implements kingpin.Value.
func (c choice) String() string { return *c.value }

// A count is the value of a flag that accepts a whole number, 0 or more.
type count struct {
	flag  string
	value *int
}

func countFlag(app *kingpin.Application, flag, help, value string) *int {
	c := count{flag: flag, value: new(int)}
	app.Flag(flag, help).Default(value).SetValue(c)
	return c.value
}

// Set implements kingpin.Value.
func (c count) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return fmt.Errorf("--%s=%s: must be a whole number, 0 or more", c.flag, s)
	}
	*c.value = n
	return nil
}

// String implements kingpin.Value.
func (c count) String() string { return strconv.Itoa(*c.value) }

// defaultSNATPorts are the ports that source NAT chooses from if its rule names none.
const defaultSNATPorts = "1024-65535"

// portRanges are the value of a flag that accepts a range of ports, and can be repeated.
type portRanges struct {
	flag   string
	ranges []pool.PortRange
}

func portRangesFlag(app *kingpin.Application, flag, help, value string) *portRanges {
	r := &portRanges{flag: flag}
	app.Flag(flag, help).Default(value).SetValue(r)
	return r
}

// IsCumulative says to kingpin that the flag can be repeated.
func (r *portRanges) IsCumulative() bool { return true }

// Set implements kingpin.Value.
func (r *portRanges) Set(s string) error {
	low, high, _ := strings.Cut(s, "-")
	first, errLow := strconv.ParseUint(low, 10, 16)
	last, errHigh := strconv.ParseUint(high, 10, 16)
	if errLow != nil || errHigh != nil || first == 0 || first > last {
		return fmt.Errorf("--%s=%s: must be two ports from 1 to 65535, for example 1024-65535", r.flag, s)
	}
	added := pool.PortRange{Low: uint16(first), High: uint16(last)}
	for _, other := range r.ranges {
		if added.Low <= other.High && other.Low <= added.High {
			return fmt.Errorf("--%s=%s: must have no port of --%s=%s", r.flag, s, r.flag, &portRanges{ranges: []pool.PortRange{other}})
		}
	}
	r.ranges = append(r.ranges, added)
	return nil
}

// String implements kingpin.Value.
func (r *portRanges) String() string {
	words := make([]string, len(r.ranges))
	for i, of := range r.ranges {
		words[i] = fmt.Sprintf("%d-%d", of.Low, of.High)
	}
	return strings.Join(words, ",")
}

// A duration is the value of a flag that accepts a duration above 0.
type duration struct {
	flag  string
	value *time.Duration
}

// durationFlag declares a flag with a default value, or if that is empty, one that is 0 unless it is given.
func durationFlag(app *kingpin.Application, flag, help, value string) *time.Duration {
	d := duration{flag: flag, value: new(time.Duration)}
	clause := app.Flag(flag, help)
	if value != "" {
		clause.Default(value)
	}
	clause.SetValue(d)
	return d.value
}

// Set implements kingpin.Value.
func (d duration) Set(s string) error {
	t, err := time.ParseDuration(s)
	if err != nil || t <= 0 {
		return fmt.Errorf("--%s=%s: must be a duration above 0, for example 500ms or 5s", d.flag, s)
	}
	*d.value = t
	return nil
}

// String implements kingpin.Value.
func (d duration) String() string { return d.value.String() }

// A destination is the value of a flag that accepts what the address of the status page accepts.
type destination struct {
	flag  string
	value *netip.AddrPort
}

func destinationFlag(app *kingpin.Application, flag, help string) *netip.AddrPort {
	d := destination{flag: flag, value: new(netip.AddrPort)}
	app.Flag(flag, help).SetValue(d)
	return d.value
}

// Set implements kingpin.Value.
func (d destination) Set(s string) (err error) {
	if *d.value, err = status.ParseDestination(s); err != nil {
		return fmt.Errorf("--%s=%s: %w", d.flag, s, err)
	}
	return nil
}

// String implements kingpin.Value.
func (d destination) String() string { return d.value.String() }

// validate returns an error for the first flag with an invalid value.
func (f *flags) validate() error {
	if err := web.CheckMetricsPath(*f.telemetryPath); err != nil {
		return fmt.Errorf("--web.telemetry-path=%s: %w", *f.telemetryPath, err)
	}
	if len(*f.namespaceDirs) > 0 && scan.Scope(*f.namespaces) == scan.ScopeSelf {
		return fmt.Errorf("--namespaces.dir=%s: has no effect with --namespaces=%s", (*f.namespaceDirs)[0], scan.ScopeSelf)
	}
	if ports := f.snatPorts.String(); ports != defaultSNATPorts && !*f.snat {
		return fmt.Errorf("--snat.port-range=%s: has no effect without --snat", ports)
	}
	if *f.snatTakeover && !*f.snat {
		return errors.New("--snat.takeover: has no effect without --snat")
	}
	if err := f.validateStatus(); err != nil {
		return err
	}
	if err := toolkit.Validate(*f.web.WebConfigFile); err != nil {
		return fmt.Errorf("--web.config.file=%s: %w", *f.web.WebConfigFile, err)
	}
	for _, address := range *f.web.WebListenAddresses {
		if _, err := listenPort(address); err != nil {
			return fmt.Errorf("--web.listen-address=%s: must be host:port, [host]:port or :port, with a port from 0 to 65535: %w", address, err)
		}
	}
	return nil
}

// leastWatch is the least interval of --watch: a collection costs as much as a scrape.
const leastWatch = time.Second

// validateStatus is validate for what --status needs, or needs --status.
func (f *flags) validateStatus() error {
	watches := *f.watch > 0
	for _, option := range []struct {
		given bool
		flag  string
	}{
		{*f.failOn != "", "fail-on=" + *f.failOn}, {*f.format != "", "format=" + *f.format},
		{f.destination.IsValid(), "destination"}, {watches, "watch=" + f.watch.String()},
	} {
		if option.given && !*f.status {
			return fmt.Errorf("--%s: has no effect without --status", option.flag)
		}
	}
	switch {
	case watches && *f.watch < leastWatch:
		return fmt.Errorf("--watch=%v: must be %v or more", *f.watch, leastWatch)
	case watches && *f.failOn != "":
		return fmt.Errorf("--fail-on=%s: has no effect with --watch, which goes on until it is stopped", *f.failOn)
	case *f.status && !watches && *f.trace:
		return errors.New("--trace: has no effect with --status, as it counts from its start on: add --watch=2s")
	default:
		return nil
	}
}

// listenPorts returns the TCP ports that the exporter will open. There are none if systemd opens
// them.
func (f *flags) listenPorts() []uint16 {
	if *f.web.WebSystemdSocket {
		return nil
	}
	var ports []uint16
	for _, address := range *f.web.WebListenAddresses {
		if port, err := listenPort(address); err == nil && port != 0 {
			ports = append(ports, port)
		}
	}
	return ports
}

// listenPort returns the TCP port of a listen address. It is 0 if the kernel chooses the port, or
// for a vsock address.
func listenPort(address string) (uint16, error) {
	if strings.HasPrefix(address, "vsock://") {
		return 0, nil
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return uint16(n), err
}
