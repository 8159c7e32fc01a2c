// Package capability tells which capabilities the process has, see capabilities(7).
package capability
