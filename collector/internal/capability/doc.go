// Package capability tells which capabilities the process has, and gives up those that it does not
// need any more, see capabilities(7).
package capability
