// Package procfs reads the files of Linux under /proc about ephemeral ports and TIME_WAIT.
//
// All of them belong to one network namespace. Files of /proc/sys/net and /proc/thread-self/net
// are of the namespace of the thread that opens them. /proc/net is of the namespace of the
// process's first thread, so this package does not use it.
package procfs
