{{- define "underpass.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- define "underpass.api" -}}
{{- if .Values.api.host }}
- {name: KUBERNETES_SERVICE_HOST, value: {{ .Values.api.host | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ .Values.api.port | quote }}}
{{- else if eq .Values.paths "socket" }}
{{- fail "paths is socket: say in api.host where the API server is, because nobody translates its Service before the agent does" }}
{{- end }}
{{- end }}
{{- /* Fails where node.env has a variable that the chart sets: it would be there twice, and the second one would hold. */ -}}
{{- define "underpass.env" -}}
{{- $ours := dict
  "NODE_NAME" "it is the name of the pod's node"
  "UNDERPASS_LISTEN" "set metrics.port"
  "UNDERPASS_SYSCTL" "it is where /proc/sys is mounted"
  "UNDERPASS_PATHS" "set paths" }}
{{- if include "underpass.maps" . | trim }}
{{- $_ := set $ours "UNDERPASS_LOAD_FLAGS" "set either maps or this, with the sizes as flags" }}
{{- end }}
{{- if .Values.api.host }}
{{- $_ := set $ours "KUBERNETES_SERVICE_HOST" "set api.host" }}
{{- $_ := set $ours "KUBERNETES_SERVICE_PORT" "set api.port" }}
{{- end }}
{{- range .Values.node.env }}
{{- if hasKey $ours .name }}
{{- fail (printf "node.env has %s, which the chart sets: %s" .name (get $ours .name)) }}
{{- end }}
{{- end }}
{{- end }}
{{- /* Whether the table of Services expires where nobody follows them: not where pods have no other way to them. */ -}}
{{- define "underpass.expires" -}}
{{- $settings := .Values.settings | default dict }}
{{- if and (eq .Values.paths "both") (or (ne ($settings.podCIDRType | default "auto") "none") $settings.serviceCIDR) }}true{{ end }}
{{- end }}
{{- /* Whether node.env has a lease of its own, or none. */ -}}
{{- define "underpass.follow" -}}
{{- range .Values.node.env }}{{ if eq .name "UNDERPASS_FOLLOW_FLAGS" }}true{{ end }}{{ end }}
{{- end }}
{{- define "underpass.maps" -}}
{{- range $map, $size := .Values.maps }}{{ with $size }} --max-{{ $map }} {{ int64 . }}{{ end }}{{ end }}
{{- end }}
{{- /* The beginning of a DaemonSet on nodes: .component, and the names of its .containers. */ -}}
{{- define "underpass.daemonset" -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: underpass-{{ .component }}
  namespace: {{ .Release.Namespace }}
  labels: {app.kubernetes.io/name: underpass, app.kubernetes.io/component: {{ .component }}}
spec:
  selector:
    matchLabels: {app.kubernetes.io/name: underpass, app.kubernetes.io/component: {{ .component }}}
  updateStrategy:
    rollingUpdate: {maxUnavailable: {{ .Values.node.maxUnavailable }}}
  template:
    metadata:
      labels: {app.kubernetes.io/name: underpass, app.kubernetes.io/component: {{ .component }}}
      {{- if semverCompare "<1.30-0" .Capabilities.KubeVersion.Version }}
      # The API refuses one that names no container.
      annotations:
        {{- range .containers }}
        container.apparmor.security.beta.kubernetes.io/{{ . }}: unconfined
        {{- end }}
      {{- end }}
{{- end }}
{{- /* What pods on nodes share; .nodes has the nodeSelector and the affinity that choose these. */ -}}
{{- define "underpass.pod" -}}
serviceAccountName: underpass-node
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
priorityClassName: {{ .Values.node.priorityClassName }}
# In the node's network namespace, where the routes to pods are. Pods' namespaces are reached by their paths, and those
# of pods without one by their processes.
hostNetwork: true
hostPID: true
nodeSelector: {{- toYaml .nodes.nodeSelector | nindent 2 }}
tolerations: {{- toYaml .Values.node.tolerations | nindent 2 }}
{{- with .nodes.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
terminationGracePeriodSeconds: 10
securityContext:
  seccompProfile: {type: RuntimeDefault}
  # AppArmor's profile for containers denies writing to /sys/fs/bpf and looking at the node's processes.
  {{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}
  appArmorProfile: {type: Unconfined}
  {{- end }}
  {{- with .Values.node.seLinuxOptions }}
  seLinuxOptions: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
