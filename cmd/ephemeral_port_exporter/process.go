package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
)

// A processCollector is a prometheus.Collector with the metrics process_* of this process that collectors.NewProcessCollector has, without
// process_network_*: what these count is of the whole network namespace. To read them, and at each scrape when the host was booted, takes
// the kernel longer the more CPUs it has. With two, it is a fifth of a scrape of a host with few sockets.
type processCollector struct {
	startTime float64 // Unix time in seconds; 0 if it is not known

	cpu, openFDs, maxFDs, virtualMemory, maxVirtualMemory, residentMemory, started *prometheus.Desc
}

// newProcessCollector returns a processCollector. Without /proc, it has no metrics, like that of collectors.NewProcessCollector.
func newProcessCollector() *processCollector {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	p := &processCollector{
		cpu:              desc("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
		openFDs:          desc("process_open_fds", "Number of open file descriptors."),
		maxFDs:           desc("process_max_fds", "Maximum number of open file descriptors."),
		virtualMemory:    desc("process_virtual_memory_bytes", "Virtual memory size in bytes."),
		maxVirtualMemory: desc("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes."),
		residentMemory:   desc("process_resident_memory_bytes", "Resident memory size in bytes."),
		started:          desc("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
	}
	if proc, err := procfs.Self(); err == nil {
		if stat, err := proc.Stat(); err == nil {
			p.startTime, _ = stat.StartTime()
		}
	}
	return p
}

// Describe implements prometheus.Collector.
func (p *processCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{p.cpu, p.openFDs, p.maxFDs, p.virtualMemory, p.maxVirtualMemory, p.residentMemory, p.started} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *processCollector) Collect(ch chan<- prometheus.Metric) {
	proc, err := procfs.Self() // not a field: the binary would have all methods of a type that an interface can reach
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, value float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	if stat, err := proc.Stat(); err == nil {
		ch <- prometheus.MustNewConstMetric(p.cpu, prometheus.CounterValue, stat.CPUTime())
		gauge(p.virtualMemory, float64(stat.VirtualMemory()))
		gauge(p.residentMemory, float64(stat.ResidentMemory()))
	}
	if n, err := proc.FileDescriptorsLen(); err == nil {
		gauge(p.openFDs, float64(n))
	}
	if limits, err := proc.Limits(); err == nil {
		gauge(p.maxFDs, float64(limits.OpenFiles))
		gauge(p.maxVirtualMemory, float64(limits.AddressSpace))
	}
	if p.startTime > 0 {
		gauge(p.started, p.startTime)
	}
}
