{{/* What all objects are called. */}}
{{- define "detector.fullname" -}}
{{- .Values.fullnameOverride -}}
{{- end -}}

{{/* The namespace of all objects. */}}
{{- define "detector.namespace" -}}
{{- .Values.namespace.name | default .Release.Namespace -}}
{{- end -}}

{{- define "detector.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "detector.fullname" .) -}}
{{- end -}}

{{/* Empty where no priority is asked for. */}}
{{- define "detector.priorityClassName" -}}
{{- if .Values.priorityClass.create -}}
{{- .Values.priorityClass.name | default (include "detector.fullname" .) -}}
{{- else -}}
{{- .Values.priorityClass.name -}}
{{- end -}}
{{- end -}}

{{- define "detector.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What selects pods. Of the release too, so that an upgrade never takes others' over. */}}
{{- define "detector.selectorLabels" -}}
app.kubernetes.io/name: detector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "detector.ownLabels" -}}
{{ include "detector.selectorLabels" . }}
app.kubernetes.io/part-of: route-hijack-detector
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* The labels of all objects. What is said twice is there once, and the chart's own win. */}}
{{- define "detector.labels" -}}
{{- include "detector.labelsWith" (dict "root" . "more" dict) -}}
{{- end -}}

{{- define "detector.labelsWith" -}}
{{- $own := include "detector.ownLabels" .root | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- merge $own (deepCopy .more) (deepCopy .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* The labels of the agents' pods: without the chart's version, or each would roll them. */}}
{{- define "detector.podLabels" -}}
{{- $own := include "detector.ownLabels" . | fromYaml -}}
{{- merge $own (deepCopy .Values.podLabels) (deepCopy .Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* The agent's configuration file. */}}
{{- define "detector.config" -}}
{{ toYaml .Values.config }}
{{- end -}}

{{/*
The configuration without the allow-list, which agents take over while they run: what is left wants
a restart, so pods bear its checksum.
*/}}
{{- define "detector.configChecksum" -}}
{{- $config := deepCopy .Values.config -}}
{{- if $config.floatingIPs -}}
{{- $_ := set $config "floatingIPs" (omit $config.floatingIPs "allow") -}}
{{- end -}}
{{- toYaml $config | sha256sum -}}
{{- end -}}

{{/* Whether the agent writes to journald, as "true" or nothing. */}}
{{- define "detector.journald" -}}
{{- if dig "sinks" "journald" "enabled" false .Values.config -}}true{{- end -}}
{{- end -}}

{{- define "detector.journalSocket" -}}
{{- dig "sinks" "journald" "socket" "" .Values.config | default "/run/systemd/journal/socket" -}}
{{- end -}}

{{- define "detector.capabilities" -}}
- BPF
- PERFMON
- NET_ADMIN
{{- if .Values.oldKernels }}
- SYS_RESOURCE
{{- end }}
{{- end -}}

{{/* A context in which root may do what the capabilities say, and nothing else. */}}
{{- define "detector.confined" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- end -}}

{{- define "detector.seLinuxOptions" -}}
{{- if .Values.openshift.enabled -}}
type: spc_t
level: s0
{{- else -}}
{{- with .Values.seLinuxOptions }}{{ toYaml . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Where a probe asks. Where no host is said, it is the pod's address, which is the node's. */}}
{{- define "detector.httpGet" -}}
httpGet:
  {{- if not .root.Values.metrics.enabled }}
  host: 127.0.0.1
  {{- end }}
  path: {{ .path }}
  port: {{ int .root.Values.metrics.port }}
{{- end -}}

{{/* What sinks need of the node and of secrets. */}}
{{- define "detector.sinkVolumeMounts" -}}
{{- if include "detector.journald" . }}
- name: journal
  mountPath: {{ include "detector.journalSocket" . }}
  readOnly: true
{{- end }}
{{- if .Values.sinkSecret }}
- name: sink-secrets
  mountPath: /etc/detector-sinks
  readOnly: true
{{- end }}
{{- end -}}

{{- define "detector.sinkVolumes" -}}
{{- if include "detector.journald" . }}
- name: journal
  hostPath:
    path: {{ include "detector.journalSocket" . }}
    type: Socket
{{- end }}
{{- if .Values.sinkSecret }}
- name: sink-secrets
  secret:
    secretName: {{ .Values.sinkSecret }}
    optional: true
    defaultMode: 256
{{- end }}
{{- end -}}

{{/* What is scraped, by either kind of monitor. */}}
{{- define "detector.endpoint" -}}
port: metrics
path: /metrics
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
relabelings:
  # Rules and dashboard go by this name, not by that of the monitor.
  - targetLabel: job
    replacement: detector
  # Alerts name the node.
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
{{- end -}}
