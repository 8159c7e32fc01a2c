// Package collector turns a Snapshot of package scan into Prometheus metrics: their
// names, labels and help texts. It decides nothing else.
package collector
