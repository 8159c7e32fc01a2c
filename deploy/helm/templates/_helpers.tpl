{{- define "ephemeral-port-exporter.fullname" -}}
{{- $name := .Release.Name }}
{{- if not (contains .Chart.Name $name) }}
{{- $name = printf "%s-%s" $name .Chart.Name }}
{{- end }}
{{- .Values.fullnameOverride | default $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "ephemeral-port-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ephemeral-port-exporter.labels" -}}
{{ include "ephemeral-port-exporter.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "ephemeral-port-exporter.metadata" -}}
name: {{ include "ephemeral-port-exporter.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "ephemeral-port-exporter.labels" . | nindent 2 }}
{{- end }}

{{- define "ephemeral-port-exporter.scheme" -}}
{{- ternary "https" "http" .Values.webConfig.tls }}
{{- end }}
