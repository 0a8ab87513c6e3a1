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
{{- define "underpass.pull" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
{{- define "underpass.maps" -}}
{{- range $map, $size := .Values.maps }}{{ with $size }} --max-{{ $map }} {{ int64 . }}{{ end }}{{ end }}
{{- end }}
