{{/*
What each feature that is on needs, as a list in YAML. This is the only place to add one:
  args          flags
  capabilities  without CAP_. Kubernetes has no ambient capabilities, so the exporter runs as root
                if there are any.
  hostPID       the processes of the node
  unconfined    no AppArmor profile
  mounts        directories of the node, read-only: name, hostPath, type, mountPath, mountPropagation
*/}}
{{- define "ephemeral-port-exporter.features" -}}
{{- if .Values.owners }}
- args: [--path.cgroup=/host/sys/fs/cgroup]
  mounts:
    - name: cgroup
      hostPath: /sys/fs/cgroup
      type: Directory
      mountPath: /host/sys/fs/cgroup
{{- end }}
{{- if .Values.podNames }}
- args: [--path.pod-logs=/host/var/log/pods]
  mounts:
    - name: pod-logs
      hostPath: /var/log/pods
      type: Directory
      mountPath: /host/var/log/pods
{{- end }}
{{- if ne .Values.namespaces "self" }}
- args: [--namespaces={{ .Values.namespaces }}]
  capabilities: [SYS_ADMIN]
  mounts:
    - name: netns
      hostPath: /run/netns
      type: DirectoryOrCreate
      mountPath: /run/netns
      mountPropagation: HostToContainer
{{- end }}
{{- if eq .Values.namespaces "all" }}
- capabilities: [SYS_PTRACE]
  hostPID: true
  # The default profile forbids access to /proc/PID/ns of other containers.
  unconfined: true
{{- end }}
{{- if .Values.snat }}
- args: [--snat]
  capabilities: [NET_ADMIN]
{{- end }}
{{- if .Values.cilium }}
- args: [--path.bpffs=/host/sys/fs/bpf]
  # Root owns the maps. Before Linux 5.19, and for the filter of system calls, bpf(2) needs this too.
  capabilities: [BPF]
  mounts:
    - name: bpf
      hostPath: /sys/fs/bpf
      type: Directory
      mountPath: /host/sys/fs/bpf
      mountPropagation: HostToContainer
{{- end }}
{{- if .Values.exact }}
- args: [--exact]
  capabilities: [BPF, PERFMON]
{{- end }}
{{- if .Values.trace }}
- args: [--trace]
  capabilities: [BPF, PERFMON]
{{- end }}
{{- end }}
