// Package sockiter lists the TCP sockets of the Linux kernel with a BPF iterator, see
// Documentation/bpf/bpf_iterators.rst. Its rows are those of a dump of package sockdiag, and
// contain also what connect() itself decides by: whether a port is bound, and whether a
// connection in TIME_WAIT used timestamps.
//
// It needs privileges that a dump does not need, and a kernel that describes its structures (BTF).
package sockiter
