// Package capability tells which rights a process has, see capabilities(7).
package capability
