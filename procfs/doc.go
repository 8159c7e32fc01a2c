// Package procfs reads what the Linux kernel tells about ephemeral ports and
// TIME_WAIT under /proc.
//
// All of it is of one network namespace: /proc/sys/net shows that of the thread
// that opens a file, and so does the thread's own net directory, while /proc/net
// shows that of the process's first thread and is not used here.
package procfs
