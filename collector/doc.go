// Package collector turns a Snapshot of package scan into Prometheus metrics. It decides their
// names, labels and help texts, and nothing else.
package collector
