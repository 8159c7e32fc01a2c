package main

import (
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A processCollector is a prometheus.Collector with the metrics process_* of this process. collectors.NewProcessCollector has two more,
// process_network_*, which are not those of the process: the kernel counts these bytes for the whole network namespace. It also takes longer
// the more CPUs and interrupts the host has, as it reads counters of all of them at each scrape: with two CPUs, a sixth of a scrape of an idle host.
type processCollector struct {
	cpu, openFDs, maxFDs, virtualMemory, maxVirtualMemory, residentMemory, startTime *prometheus.Desc

	begin time.Time

	mu      sync.Mutex
	started float64       // Unix time in seconds; 0 if it is not known
	step    time.Duration // see stepSince: from begin until started was read
}

// newProcessCollector returns a processCollector. Without /proc, it has only the CPU time and the limits.
func newProcessCollector() *processCollector {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return &processCollector{
		begin:            time.Now(),
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
	var cpu unix.Timespec // where /proc has hundredths of a second: nine scrapes of an idle host
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &cpu) == nil {
		ch <- prometheus.MustNewConstMetric(p.cpu, prometheus.CounterValue, time.Duration(cpu.Nano()).Seconds())
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
	if memory, err := proc.Statm(); err == nil {
		gauge(p.virtualMemory, float64(memory.SizeBytes()))
		gauge(p.residentMemory, float64(memory.ResidentBytes()))
	}
	if started := p.startOf(proc); started > 0 {
		gauge(p.startTime, started)
	}
}

// startOf returns when the process was started, by the clock as it is set now.
func (p *processCollector) startOf(proc procfs.Proc) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	step := stepSince(p.begin)
	if p.started > 0 && (step-p.step).Abs() < 100*time.Millisecond {
		return p.started
	}
	p.started, p.step = 0, step
	if stat, err := proc.Stat(); err == nil {
		p.started, _ = stat.StartTime() // 0 with an error
	}
	return p.started
}

// stepSince returns by how much more the wall clock went on than the monotonic clock: it was set, or the host was suspended.
func stepSince(t time.Time) time.Duration {
	now := time.Now()
	return now.Round(0).Sub(t.Round(0)) - now.Sub(t) // Round takes the monotonic clock away
}
