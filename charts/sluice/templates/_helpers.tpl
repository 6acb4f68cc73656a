{{- /* Names. The lease names and the Secret of key hashes are fixed: one release in a namespace. */ -}}
{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sluice.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What is not in a namespace bears its release's namespace in its name. */ -}}
{{- define "sluice.clustername" -}}
{{- printf "%s-%s" .Release.Namespace (include "sluice.fullname" .) -}}
{{- end -}}

{{- /* Labels. Component labels take (list $ "router"). */ -}}
{{- define "sluice.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Chart.AppVersion }}
app.kubernetes.io/version: {{ . | quote }}
{{- end }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sluice.componentLabels" -}}
{{ include "sluice.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "sluice.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "sluice.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* (list $ "router"): an image by digest, else by tag. */ -}}
{{- define "sluice.image" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $registry := required "image.registry is not set: name where the images are; `make images IMAGES=\"--push REGISTRY --tag TAG\"` builds and pushes them" $root.Values.image.registry -}}
{{- $digest := index $root.Values.image.digests $name -}}
{{- if $digest -}}
{{- printf "%s/%s@%s" (trimSuffix "/" $registry) $name $digest -}}
{{- else -}}
{{- printf "%s/%s:%s" (trimSuffix "/" $registry) $name ($root.Values.image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* The namespaces of endpoints as a JSON list, empty for all of them. */ -}}
{{- define "sluice.namespaces" -}}
{{- if .Values.clusterWide -}}
{{- if .Values.namespaces -}}
{{- fail "namespaces and clusterWide exclude each other: list namespaces, or say clusterWide for all of them" -}}
{{- end -}}
[]
{{- else -}}
{{- .Values.namespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end -}}
{{- end -}}

{{- /* The namespace that the router's short path resolves in. */ -}}
{{- define "sluice.namespace" -}}
{{- first (.Values.namespaces | default (list .Release.Namespace)) -}}
{{- end -}}

{{- define "sluice.scoringURL" -}}
{{- if .Values.control.scoringURL -}}
{{- .Values.control.scoringURL -}}
{{- else -}}
{{- $port := int .Values.router.service.port -}}
http://{{ include "sluice.fullname" . }}-router.{{ .Release.Namespace }}.svc{{ if ne $port 80 }}:{{ $port }}{{ end }}
{{- end -}}
{{- end -}}

{{- /* "true" if there is a webhook at all, else empty. */ -}}
{{- define "sluice.webhook" -}}
{{- if or .Values.github.enabled .Values.api.enabled (ne .Values.page.readers "none") -}}true{{- end -}}
{{- end -}}

{{- /* The policy of the API, as the program reads it. */ -}}
{{- define "sluice.policy" -}}
{{- if not .Values.api.policy.rules -}}
{{- fail "api.policy.rules is not set: say which repositories' workflows may do what" -}}
{{- end -}}
apiVersion: sluice.dev/v1alpha1
kind: APIPolicy
rules:
  {{- toYaml .Values.api.policy.rules | nindent 2 }}
{{- end -}}

{{- /* "true" if people can log in to the page, else empty. */ -}}
{{- define "sluice.login" -}}
{{- if .Values.page.login.issuer -}}true{{- end -}}
{{- end -}}

{{- /* The policy of the page's login, as the program reads it. */ -}}
{{- define "sluice.loginPolicy" -}}
{{- if not .Values.page.login.policy.rules -}}
{{- fail "page.login.policy.rules is not set: say what people who have logged in may do" -}}
{{- end -}}
apiVersion: sluice.dev/v1alpha1
kind: PagePolicy
groupsClaim: {{ .Values.page.login.groupsClaim | quote }}
rules:
  {{- toYaml .Values.page.login.policy.rules | nindent 2 }}
{{- end -}}

{{- /* "true" if the page's policy lets somebody change endpoints, else empty. */ -}}
{{- define "sluice.loginChanges" -}}
{{- $changes := "" -}}
{{- if include "sluice.login" . -}}
{{- range .Values.page.login.policy.rules -}}
{{- range .commands -}}
{{- if ne . "read" -}}{{ $changes = "true" }}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $changes -}}
{{- end -}}

{{- define "sluice.permissions" -}}
apiVersion: sluice.dev/v1alpha1
kind: CommandPermissions
{{ toYaml .Values.github.permissions }}
{{- end -}}

{{- /* How many pods: (list $ replicas). */ -}}
{{- define "sluice.replicas" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.clusterPurpose "dev-test" -}}1{{- else -}}{{ int (index . 1) }}{{- end -}}
{{- end -}}

{{- /* "true" if the routers scale themselves, else empty. */ -}}
{{- define "sluice.selfScale" -}}
{{- if and .Values.router.selfScale.enabled (ne .Values.clusterPurpose "dev-test") -}}true{{- end -}}
{{- end -}}

{{- /* The most router pods: never fewer than the fewest. */ -}}
{{- define "sluice.selfMax" -}}
{{- max (int .Values.router.selfScale.maxReplicas) (int .Values.router.replicas) -}}
{{- end -}}

{{- /*
How many router pods there are to be if they scale themselves, (list $ name-of-the-Deployment): as many as
there are, within the bounds, so that an upgrade takes none away that are needed. Leaving the field out would do so: Helm
would take away what an earlier release had set, and the API server would make it 1. Where the cluster cannot be
asked (helm template, a dry run on the client, tools that render without a cluster) it is the fewest.
*/ -}}
{{- define "sluice.selfReplicas" -}}
{{- $root := index . 0 -}}
{{- $have := dig "spec" "replicas" 0 (lookup "apps/v1" "Deployment" $root.Release.Namespace (index . 1)) -}}
{{- min (max (int $have) (int $root.Values.router.replicas)) (include "sluice.selfMax" $root | int) -}}
{{- end -}}

{{- /* The CPU that a container with these resources starts with: the limit, or the request without a limit. */ -}}
{{- define "sluice.cpu" -}}
{{- $cpu := dig "limits" "cpu" "" . | default (dig "requests" "cpu" "" .) -}}
{{- required "router.selfScale needs router.resources to have a limit or a request of cpu to begin with, or selfScale.enabled=false" $cpu -}}
{{- end -}}

{{- /* Flags of every program. */ -}}
{{- define "sluice.flags" -}}
- --target=kubernetes
- --system-namespace={{ .Release.Namespace }}
- --namespace={{ include "sluice.namespace" . }}
{{- with include "sluice.namespaces" . | fromJsonArray }}
- --watch-namespaces={{ join "," . }}
{{- end }}
{{- end -}}

{{- /* Restricted, as the Pod Security Standards have it. */ -}}
{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* Metadata of a pod: (list $ "router" values port-of-metrics). */ -}}
{{- define "sluice.podMeta" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
{{- $port := index . 3 -}}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" (index . 1) -}}
{{- if and $port $root.Values.metrics.annotations -}}
{{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString $port) "prometheus.io/path" "/metrics") -}}
{{- end -}}
{{- /* Labels of one's own never replace those that pods are found by. */ -}}
labels:
  {{- toYaml (merge (include "sluice.componentLabels" (list $root (index . 1)) | fromYaml) $values.podLabels) | nindent 2 }}
annotations:
  {{- toYaml (merge (deepCopy $values.podAnnotations) $annotations) | nindent 2 }}
{{- end -}}

{{- /* Placement and the rest of a pod's spec that all have: (list $ "router" values). */ -}}
{{- define "sluice.podSpec" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
serviceAccountName: {{ include "sluice.fullname" $root }}-{{ index . 1 }}
# Variables SLUICE_… set flags: those that Kubernetes makes of Services must not.
enableServiceLinks: false
securityContext:
  {{- include "sluice.podSecurity" $root | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Probes on a port: a start may take the minute that reading the cluster for the first time is given. */ -}}
{{- define "sluice.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 90
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{- /* Egress rules that several NetworkPolicies have. */ -}}
{{- define "sluice.np.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
  {{- with .Values.networkPolicy.egress.dns.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "sluice.np.apiServer" -}}
- ports:
    {{- range .Values.networkPolicy.egress.apiServer.ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.egress.apiServer.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "sluice.np.routers" -}}
- ports:
    - {port: 9090, protocol: TCP}
  to:
    - podSelector:
        matchLabels:
          {{- include "sluice.selector" (list . "router") | nindent 10 }}
{{- end -}}
