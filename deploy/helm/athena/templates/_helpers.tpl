{{- define "athena.labels" -}}
app.kubernetes.io/name: athena
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "athena.selector" -}}
app.kubernetes.io/name: athena
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "athena.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "athena.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "athena.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Environment that server and workers share. */}}
{{- define "athena.env" -}}
- name: ATHENA_SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: secret-key}}
- name: NATS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: nats-password}}
{{- range $key, $value := .Values.settings }}
- name: ATHENA_{{ $key | replace "." "_" | upper }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
