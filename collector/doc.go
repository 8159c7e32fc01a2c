// Package collector turns TCP sockets and kernel settings into ephemeral-port
// numbers, one pool of ports per (source address, destination address,
// destination port), and those into Prometheus metrics.
//
// The data flows one way: listeners and sockets of package sockdiag and settings
// of package procfs are tallied (tally.go), judged by the rules of the kernel's
// port search (rules.go), cut to a bounded size (report.go) and written out
// (metrics.go). survey.go does so for each network namespace in scope.
//
// No number is remembered from one collection to the next; what is, so that they keep
// their names and their failures are logged once, are the labels of other namespaces.
//
// Apart from that, connectfailures.go exports what package connectfail counts on the whole
// host. It remembers which pools have series.
package collector
