{{- define "kvgauge.aggregatorWrites" -}}
{{- if or .Values.aggregator.scaleInHelper .Values.aggregator.events }}true{{ end -}}
{{- end -}}

{{- /* Whether an API is registered with the API server. */ -}}
{{- define "kvgauge.aggregatedApi" -}}
{{- if and .Values.aggregator.enabled (or .Values.customMetrics.enabled .Values.externalMetrics.enabled) }}true{{ end -}}
{{- end -}}

{{- /* What the aggregator may do where it watches. */ -}}
{{- define "kvgauge.watchRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch{{ if .Values.aggregator.scaleInHelper }}, patch{{ end }}]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [list, watch]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [list, watch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch]
{{- if .Values.aggregator.events }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
{{- end -}}

{{- /* A role and its binding: (dict "root" $ "name" N "namespace" NS|"" "rules" TEXT "account" A "accountNamespace" NS),
of the cluster where namespace is empty. */ -}}
{{- define "kvgauge.grant" -}}
{{- $labels := include "kvgauge.labels" (dict "root" .root "component" "aggregator") -}}
{{- $prefix := ternary "" "Cluster" (ne .namespace "") -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $prefix }}Role
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- $labels | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $prefix }}RoleBinding
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- $labels | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $prefix }}Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .accountNamespace }}
{{- end -}}

{{- /* (dict "root" $ "version" "v1beta1" "group" G "priority" N): refuses where another owner stands. */ -}}
{{- define "kvgauge.apiService" -}}
{{- $name := printf "%s.%s" .version .group -}}
{{- $release := .root.Release -}}
{{- with lookup "apiregistration.k8s.io/v1" "APIService" "" $name -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- $owner := get $annotations "meta.helm.sh/release-name" -}}
{{- $ownerNamespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if not (and (eq $owner $release.Name) (eq $ownerNamespace $release.Namespace)) -}}
{{- $service := .spec.service | default dict -}}
{{- $who := printf "Service %s/%s" (get $service "namespace") (get $service "name") -}}
{{- if not $service -}}{{- $who = "the API server itself" -}}{{- end -}}
{{- if $owner -}}{{- $who = printf "%s of Helm release %s in namespace %s" $who $owner $ownerNamespace -}}{{- end -}}
{{- $switch := ternary "customMetrics" "externalMetrics" (hasPrefix "custom." $.group) -}}
{{- fail (printf "APIService %s belongs to %s. A cluster has one owner of %s: remove that one first, or set %s.enabled=false (docs/install.md says what works without it)" $name $who $.group $switch) -}}
{{- end -}}
{{- end -}}
{{- $of := dict "root" .root "component" "aggregator" -}}
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata:
  name: {{ $name }}
  labels:
    {{- include "kvgauge.labels" $of | nindent 4 }}
  {{- with include "kvgauge.certificate.annotations" (merge (dict "annotations" .root.Values.customMetrics.annotations) $of) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
spec:
  group: {{ .group }}
  version: {{ .version }}
  groupPriorityMinimum: 100
  versionPriority: {{ .priority }}
  service:
    name: {{ include "kvgauge.componentName" $of }}
    namespace: {{ $release.Namespace }}
    port: 443
  {{- with include "kvgauge.certificate.caBundle" $of }}
  caBundle: {{ . }}
  {{- end }}
{{- end -}}
