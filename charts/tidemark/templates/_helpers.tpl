{{- define "tidemark.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "tidemark.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tidemark.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tidemark.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- /* Cluster-wide names carry the namespace: two releases of one name must not share a ClusterRole. */ -}}
{{- define "tidemark.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "tidemark.fullname" .) -}}
{{- end }}

{{- define "tidemark.serviceAccount" -}}
{{- default (include "tidemark.fullname" .) .Values.serviceAccount.name -}}
{{- end }}

{{- define "tidemark.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{- define "tidemark.selector" -}}
app.kubernetes.io/name: {{ include "tidemark.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "tidemark.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tidemark
{{ include "tidemark.selector" . }}
{{- /* Not "tidemark": that word marks what the operator makes and removes itself. */}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidemark.workerSettings" -}}
{{- $worker := .Values.worker -}}
{{- $settings := dict "image" (include "tidemark.image" .) "imagePullPolicy" .Values.image.pullPolicy "user" $worker.user -}}
{{- range $key := list "resources" "nodeSelector" "tolerations" "affinity" "labels" "annotations" "serviceAccountName" "priorityClassName" -}}
{{- with get $worker $key }}{{ $_ := set $settings $key . }}{{ end -}}
{{- end -}}
{{- with .Values.imagePullSecrets }}{{ $_ := set $settings "imagePullSecrets" . }}{{ end -}}
{{- toYaml $settings -}}
{{- end }}
