// Package bpf prepares a process for loading eBPF programs.
package bpf
