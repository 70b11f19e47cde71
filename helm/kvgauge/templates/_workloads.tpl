{{- define "kvgauge.workloadApiVersion" -}}
{{- ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" (eq . "LeaderWorkerSet") -}}
{{- end -}}

{{- define "kvgauge.workloadMetadata" -}}
{{- $workload := .workload -}}
name: {{ include "kvgauge.bounded" (dict "name" (printf "%s-kvgauge" $workload.name) "most" 63) }}
namespace: {{ $workload.namespace | default .root.Values.watchNamespace | default .root.Release.Namespace }}
labels:
  {{- include "kvgauge.labels" (dict "root" .root "component" "autoscaler") | nindent 2 }}
{{- end -}}

{{- define "kvgauge.workloadTarget" -}}
apiVersion: {{ include "kvgauge.workloadApiVersion" .kind }}
kind: {{ .kind }}
name: {{ .name }}
{{- end -}}

{{- define "kvgauge.checkBounds" -}}
{{- if gt (int .workload.min) (int .workload.max) -}}
{{- fail (printf "%s: min should be at most max" .where) -}}
{{- end -}}
{{- end -}}

{{- /* Behavior of an autoscaler with the tolerance put in, where there is one. */ -}}
{{- define "kvgauge.behavior" -}}
{{- $behavior := deepCopy (.given | default dict) -}}
{{- if ne .tolerance "" -}}
{{- range list "scaleUp" "scaleDown" -}}
{{- $rules := get $behavior . | default dict -}}
{{- if not (hasKey $rules "tolerance") -}}{{- $_ := set $rules "tolerance" $.tolerance -}}{{- end -}}
{{- $_ := set $behavior . $rules -}}
{{- end -}}
{{- end -}}
{{- with $behavior -}}
behavior:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* (dict "root" $ "workload" ENTRY "where" TEXT) */ -}}
{{- define "kvgauge.autoscaler" -}}
{{- $workload := .workload -}}
{{- $hpa := $workload.hpa | default dict -}}
{{- $metric := $hpa.metric | default "pods" -}}
{{- if not (and .root.Values.aggregator.enabled .root.Values.customMetrics.enabled) -}}
{{- fail (printf "%s: needs aggregator.enabled and customMetrics.enabled" .where) -}}
{{- end -}}
{{- if and (eq (int $workload.min) 0) (ne $metric "object") -}}
{{- fail (printf "%s: min 0 needs metric object, or a scaledObject" .where) -}}
{{- end -}}
{{- include "kvgauge.checkBounds" . -}}
{{- /* A count of replicas leaves nothing to tolerate; the load ratio keeps the cluster's dead band. */ -}}
{{- $tolerance := "" -}}
{{- if hasKey $hpa "tolerance" -}}
{{- $tolerance = $hpa.tolerance | toString -}}
{{- else if and (eq $metric "object") (semverCompare ">=1.35.0-0" .root.Capabilities.KubeVersion.Version) -}}
{{- $tolerance = "0" -}}
{{- end -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "kvgauge.workloadMetadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    {{- include "kvgauge.workloadTarget" $workload | nindent 4 }}
  minReplicas: {{ $workload.min }}
  maxReplicas: {{ $workload.max }}
  metrics:
    {{- if eq $metric "object" }}
    - type: Object
      object:
        metric:
          name: kvgauge_required_replicas
        describedObject:
          {{- include "kvgauge.workloadTarget" $workload | nindent 10 }}
        target:
          type: AverageValue
          averageValue: "1"
    {{- else }}
    - type: Pods
      pods:
        metric:
          name: kvgauge_load_ratio
        target:
          type: AverageValue
          averageValue: {{ printf "%dm" (round (mulf (default 0.85 $hpa.target) 1000) 0 | int) | quote }}
    {{- end }}
  {{- with include "kvgauge.behavior" (dict "given" $hpa.behavior "tolerance" $tolerance) }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* (dict "root" $ "workload" ENTRY "where" TEXT) */ -}}
{{- define "kvgauge.scaledObject" -}}
{{- $workload := .workload -}}
{{- $scaled := $workload.scaledObject | default dict -}}
{{- $keda := .root.Values.aggregator.keda -}}
{{- if not (and .root.Values.aggregator.enabled $keda.enabled) -}}
{{- fail (printf "%s: needs aggregator.enabled and aggregator.keda.enabled" .where) -}}
{{- end -}}
{{- if and $keda.tls (not $scaled.authentication) -}}
{{- fail (printf "%s.authentication: missing: with aggregator.keda.tls KEDA must be told the CA by a TriggerAuthentication" .where) -}}
{{- end -}}
{{- include "kvgauge.checkBounds" . -}}
{{- $service := include "kvgauge.componentName" (dict "root" .root "component" "keda") -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "kvgauge.workloadMetadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    {{- include "kvgauge.workloadTarget" $workload | nindent 4 }}
  minReplicaCount: {{ $workload.min }}
  maxReplicaCount: {{ $workload.max }}
  pollingInterval: {{ $scaled.pollingInterval | default 15 }}
  cooldownPeriod: {{ $scaled.cooldownPeriod | default 300 }}
  {{- with $scaled.fallback }}
  fallback:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $scaled.behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    - type: external
      {{- with $scaled.authentication }}
      authenticationRef:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      metadata:
        scalerAddress: {{ printf "%s.%s.svc:%v" $service .root.Release.Namespace $keda.port }}
        workload: {{ printf "%s/%s" (lower $workload.kind) $workload.name }}
        metric: {{ $scaled.metric | default "kvgauge_required_replicas" }}
        {{- if hasKey $scaled "target" }}
        target: {{ $scaled.target | quote }}
        {{- end }}
        {{- if hasKey $scaled "activation" }}
        activation: {{ $scaled.activation | quote }}
        {{- end }}
        {{- if $keda.tls }}
        enableTLS: "true"
        {{- end }}
    {{- with $scaled.triggers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
