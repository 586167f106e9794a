{{- define "coordinator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for "-peers" and a replica's number in a DNS label. */}}
{{- define "coordinator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "coordinator.selector" -}}
app.kubernetes.io/name: {{ include "coordinator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "coordinator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "coordinator.selector" . }}
{{- end }}

{{- define "coordinator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* What cannot work is refused here, where there is somebody to read why. */}}
{{- define "coordinator.check" -}}
{{- $outside := .Values.insecureOutsideEnclave }}
{{- $emulated := .Values.sgx.insecureEmulated }}
{{- if not (or .Values.owner.certificate .Values.owner.tokenSha256 .Values.owner.insecureAnybody) }}
{{- fail "nobody owns the coordinator: set owner.certificate or owner.tokenSha256 (or owner.insecureAnybody: true, and whoever comes first sets the manifest)" }}
{{- end }}
{{- if and $outside $emulated }}
{{- fail "insecureOutsideEnclave and sgx.insecureEmulated exclude each other: choose one" }}
{{- end }}
{{- if and (eq .Values.store.kind "embedded") (gt (int .Values.replicas) 1) }}
{{- fail "the embedded store is one replica's own: set replicas: 1, or store.kind: kubernetes or etcd" }}
{{- end }}
{{- if and (gt (int .Values.replicas) 1) $emulated }}
{{- fail "an emulated platform believes nobody but itself, so replicas could not share the state: set replicas: 1 with sgx.insecureEmulated" }}
{{- end }}
{{- if and (gt (int .Values.replicas) 1) $outside }}
{{- fail "outside an enclave replicas cannot prove to each other what they are: set replicas: 1 with insecureOutsideEnclave" }}
{{- end }}
{{- if and (eq .Values.store.kind "etcd") (not .Values.store.etcd.endpoints) }}
{{- fail "store.kind is etcd: name its members in store.etcd.endpoints" }}
{{- end }}
{{- if and .Values.store.etcd.clientCertificate (not .Values.store.etcd.tlsSecret) }}
{{- fail "store.etcd.clientCertificate: name the Secret that has it in store.etcd.tlsSecret" }}
{{- end }}
{{- if and (not $outside) (not $emulated) (not .Values.sgx.resources) }}
{{- fail "an enclave needs a device: name what the device plugin gives in sgx.resources" }}
{{- end }}
{{- end }}

{{/* The command line. In an enclave it is measured: the same for all replicas, so they are one MRENCLAVE. */}}
{{- define "coordinator.arguments" -}}
{{- $name := include "coordinator.fullname" . }}
{{- $shared := ne .Values.store.kind "embedded" }}
{{- $words := list "coordinator" }}
{{- if .Values.insecureOutsideEnclave }}
{{- $words = append $words "--insecure-outside-enclave" }}
{{- else }}
{{- $words = concat $words (list "--in-enclave" "--platform" (ternary "emulated" "hardware" .Values.sgx.insecureEmulated)) }}
{{- end }}
{{- $words = concat $words (list "--client-address" "0.0.0.0:4433" "--mesh-address" "0.0.0.0:2001") }}
{{- if .Values.metrics.enabled }}
{{- $words = concat $words (list "--metrics-address" (printf "0.0.0.0:%d" (int .Values.metrics.port))) }}
{{- end }}
{{- $full := printf "%s.%s.svc" $name .Release.Namespace }}
{{- range concat (list "localhost" $name (printf "%s.%s" $name .Release.Namespace) $full (printf "%s.cluster.local" $full)) .Values.names }}
{{- $words = concat $words (list "--name" .) }}
{{- end }}
{{- if .Values.owner.certificate }}
{{- $words = concat $words (list "--owner-certificate" "/config/owner.pem") }}
{{- end }}
{{- if .Values.owner.tokenSha256 }}
{{- $words = concat $words (list "--owner-token-sha256" .Values.owner.tokenSha256) }}
{{- end }}
{{- $words = concat $words (list "--state" "/state/coordinator") }}
{{- if or $shared .Values.insecureOutsideEnclave }}
{{- $words = concat $words (list "--freshness-anchor" "/machine/anchor") }}
{{- end }}
{{- if eq .Values.store.kind "kubernetes" }}
{{- $words = concat $words (list "--kubernetes" "--kubernetes-prefix" .Values.store.kubernetes.prefix) }}
{{- end }}
{{- if eq .Values.store.kind "etcd" }}
{{- range .Values.store.etcd.endpoints }}
{{- $words = concat $words (list "--etcd" .) }}
{{- end }}
{{- $words = concat $words (list "--etcd-prefix" .Values.store.etcd.prefix) }}
{{- if .Values.store.etcd.tlsSecret }}
{{- $words = concat $words (list "--store-ca" "/store/ca.crt") }}
{{- end }}
{{- if .Values.store.etcd.clientCertificate }}
{{- $words = concat $words (list "--store-cert" "/store/tls.crt" "--store-key" "/store/tls.key") }}
{{- end }}
{{- end }}
{{- if and $shared (not .Values.insecureOutsideEnclave) }}
{{- /* Some that are not there do no harm; up to so many the number of replicas does not change what is measured. */}}
{{- range $n := until (max 5 (int .Values.replicas) | int) }}
{{- $words = concat $words (list "--peer" (printf "%s-%d.%s-peers.%s.svc:4433" $name $n $name $.Release.Namespace)) }}
{{- end }}
{{- end }}
{{- if .Values.signKeySecret }}
{{- if not .Values.insecureOutsideEnclave }}
{{- $words = concat $words (list "--sign-key" "/sign/sign.pem") }}
{{- end }}
{{- end }}
{{- if .Values.collateralConfigMap }}
{{- $words = concat $words (list "--collateral" "/collateral") }}
{{- end }}
{{- if .Values.logJson }}
{{- $words = append $words "--log-json" }}
{{- end }}
{{- toYaml $words }}
{{- end }}
