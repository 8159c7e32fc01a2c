package main

import (
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
)

// A processCollector is a prometheus.Collector with the metrics process_* of this process. Those of collectors.NewProcessCollector have two
// more, process_network_*, which are false: the kernel counts these bytes for the whole network namespace. It also takes longer the more CPUs
// and interrupts the host has, as it reads counters of all of them at each scrape: with two CPUs, a sixth of a scrape of an idle host.
type processCollector struct {
	cpu, openFDs, maxFDs, virtualMemory, maxVirtualMemory, residentMemory, startTime *prometheus.Desc

	mu      sync.Mutex
	started float64   // Unix time in seconds; 0 if it is not known
	read    time.Time // when started was read
}

// newProcessCollector returns a processCollector. Without /proc, it has only the limits.
func newProcessCollector() *processCollector {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return &processCollector{
		cpu:              desc("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
		openFDs:          desc("process_open_fds", "Number of open file descriptors."),
		maxFDs:           desc("process_max_fds", "Maximum number of open file descriptors."),
		virtualMemory:    desc("process_virtual_memory_bytes", "Virtual memory size in bytes."),
		maxVirtualMemory: desc("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes."),
		residentMemory:   desc("process_resident_memory_bytes", "Resident memory size in bytes."),
		startTime:        desc("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
	}
}

// Describe implements prometheus.Collector.
func (p *processCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{p.cpu, p.openFDs, p.maxFDs, p.virtualMemory, p.maxVirtualMemory, p.residentMemory, p.startTime} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. A metric that cannot be read is left out.
func (p *processCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		gauge(p.maxFDs, float64(limit.Cur))
	}
	if syscall.Getrlimit(syscall.RLIMIT_AS, &limit) == nil {
		gauge(p.maxVirtualMemory, float64(limit.Cur))
	}
	proc, err := procfs.Self() // not a field: the binary would have all methods of a type that an interface can reach
	if err != nil {
		return
	}
	if n, err := proc.FileDescriptorsLen(); err == nil {
		gauge(p.openFDs, float64(n))
	}
	stat, err := proc.Stat()
	if err != nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(p.cpu, prometheus.CounterValue, stat.CPUTime())
	gauge(p.virtualMemory, float64(stat.VirtualMemory()))
	gauge(p.residentMemory, float64(stat.ResidentMemory()))
	if started := p.startOf(stat); started > 0 {
		gauge(p.startTime, started)
	}
}

// startOf returns when the process was started, by the clock as it is set now.
func (p *processCollector) startOf(stat procfs.ProcStat) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.started == 0 || wasSet(p.read, now) {
		p.started, _ = stat.StartTime() // 0 with an error
		p.read = now
	}
	return p.started
}

// wasSet reports whether the wall clock was set between two times, or the host was suspended: then it went on by more than the monotonic clock.
func wasSet(since, now time.Time) bool {
	step := now.Round(0).Sub(since.Round(0)) - now.Sub(since) // Round takes the monotonic clock away
	return step.Abs() > 100*time.Millisecond
}
