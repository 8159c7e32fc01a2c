package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
)

// maxPods is how many entries of the directory are read. Kubelet runs 110 pods by default, and removes the directories of
// those that are gone.
const maxPods = 4096

// podLogs matches the name of the directory that kubelet makes for the logs of a pod: NAMESPACE_NAME_UID. The namespace is a DNS
// label, and the name a DNS subdomain (RFC 1123), but their lengths do not matter here.
var podLogs = regexp.MustCompile(`^([a-z0-9][-a-z0-9]*)_([a-z0-9][-.a-z0-9]*)_([0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12})$`)

// Pods returns the pods of a kubelet by their UIDs, each as NAMESPACE/NAME. dir is the directory in which kubelet
// has a directory for the logs of each pod, /var/log/pods by default: it reads their names, and nothing in them. Of a
// directory with more than maxPods entries, some pods are missing. A UID of two pods has an empty name.
func Pods(dir string) (map[string]string, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("cgroup: pods: %w", err)
	} else if !info.IsDir() { // a FIFO would wait for a writer
		return nil, fmt.Errorf("cgroup: pods: %s is not a directory", dir)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cgroup: pods: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(maxPods)
	if err != nil && !errors.Is(err, io.EOF) { // it is empty
		return nil, fmt.Errorf("cgroup: pods: %w", err)
	}
	pods := make(map[string]string, len(names))
	for _, name := range names {
		m := podLogs.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		uid, pod := m[3], m[1]+"/"+m[2]
		if other, ok := pods[uid]; ok && other != pod {
			pod = ""
		}
		pods[uid] = pod
	}
	return pods, nil
}
