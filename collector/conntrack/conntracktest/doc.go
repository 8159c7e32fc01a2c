// Package conntracktest writes flows for tests: as rows of a dump, and into the table of the real
// kernel.
package conntracktest
