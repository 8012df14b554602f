{{- define "captioner.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "captioner.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "captioner.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "captioner.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that never change: call with (dict "root" $ "component" "server"). */}}
{{- define "captioner.selector" -}}
app.kubernetes.io/name: {{ include "captioner.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "captioner.labels" -}}
{{ include "captioner.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An image's reference: call with (dict "root" $ "image" .Values.image). */}}
{{- define "captioner.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "captioner.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "captioner.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The headless service that resolves to every server. */}}
{{- define "captioner.servers" -}}
{{ include "captioner.fullname" . }}-servers
{{- end }}

{{/* Where clients send captions. */}}
{{- define "captioner.address" -}}
{{ include "captioner.fullname" . }}:8001
{{- end }}

{{- define "captioner.gracePeriod" -}}
{{- with .Values.drain }}{{ add .preStopSeconds .exitTimeoutSeconds .marginSeconds }}{{ end }}
{{- end }}

{{/* Values that the schema cannot refuse. */}}
{{- define "captioner.validate" -}}
{{- if and (eq .Values.modelRepository.type "s3") (not .Values.modelRepository.s3.uri) }}
{{- fail "modelRepository.s3.uri is empty; name the bucket's folder, such as s3://models/captioner" }}
{{- end }}
{{- $pvc := .Values.modelRepository.pvc }}
{{- if and (eq .Values.modelRepository.type "pvc") (not $pvc.existingClaim) (or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1)) (not (has "ReadWriteMany" $pvc.accessModes)) }}
{{- fail "several replicas share modelRepository.pvc, so its accessModes must include ReadWriteMany" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.prometheusAddress) }}
{{- fail "autoscaling.prometheusAddress is empty; KEDA reads captioner_running and captioner_waiting from there" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
{{- fail "autoscaling.maxReplicas is less than autoscaling.minReplicas" }}
{{- end }}
{{- if and .Values.page.enabled .Values.page.ingress.enabled (not .Values.page.authSecret) (not .Values.page.insecure) }}
{{- fail "page.ingress opens the page to others; set page.authSecret, or page.insecure=true to give access to everyone" }}
{{- end }}
{{- if and .Values.page.ingress.enabled (not .Values.page.ingress.hosts) }}
{{- fail "page.ingress.hosts is empty" }}
{{- end }}
{{- if and .Values.gpu.required (not (index (.Values.resources.limits | default dict) "nvidia.com/gpu")) }}
{{- fail "gpu.required is true, but resources.limits has no nvidia.com/gpu; to serve on CPUs, set gpu.required=false" }}
{{- end }}
{{- if and (not .Values.gpu.required) (index (.Values.resources.limits | default dict) "nvidia.com/gpu") }}
{{- fail "gpu.required is false, but resources.limits takes an nvidia.com/gpu; remove it with resources.limits.nvidia\\.com/gpu=null" }}
{{- end }}
{{- end }}
