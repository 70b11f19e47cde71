{{- /* Names, labels and what pods have in common. Where a template needs more than the root: (dict "root" $ ...). */ -}}

{{- /* A name of at most `most` characters; what is cut off goes on as a hash, so that different names stay different. */ -}}
{{- define "kvgauge.bounded" -}}
{{- if le (len .name) (int .most) -}}
{{- .name -}}
{{- else -}}
{{- printf "%s-%s" (.name | trunc (sub .most 9 | int) | trimSuffix "-") (.name | sha256sum | trunc 8) -}}
{{- end -}}
{{- end -}}

{{- define "kvgauge.fullname" -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $name := default "kvgauge" .Values.nameOverride -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | replace "." "-" -}}
{{- end -}}
{{- include "kvgauge.bounded" (dict "name" $full "most" 40) -}}
{{- end -}}

{{- /* (dict "root" $ "component" "aggregator") */ -}}
{{- define "kvgauge.componentName" -}}
{{- printf "%s-%s" (include "kvgauge.fullname" .root) .component -}}
{{- end -}}

{{- /* Of objects that another namespace's release of the same name must not share. */ -}}
{{- define "kvgauge.clusterName" -}}
{{- $name := printf "%s-%s" (include "kvgauge.fullname" .root) .root.Release.Namespace -}}
{{- $most := sub 62 (len .component) -}}
{{- printf "%s-%s" (include "kvgauge.bounded" (dict "name" $name "most" $most)) .component -}}
{{- end -}}

{{- define "kvgauge.selectorLabels" -}}
app.kubernetes.io/name: kvgauge
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "kvgauge.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{ include "kvgauge.selectorLabels" . }}
app.kubernetes.io/part-of: kvgauge
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kvgauge.image" -}}
{{- with .Values.image -}}
{{- if .registry }}{{ .registry | trimSuffix "/" }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "kvgauge.serviceAccountName" -}}
{{- $account := (get .root.Values .component).serviceAccount -}}
{{- $account.name | default (include "kvgauge.componentName" .) -}}
{{- end -}}

{{- define "kvgauge.nativeSidecars" -}}
{{- semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}
{{- end -}}

{{- define "kvgauge.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{- define "kvgauge.podSecurityContext" -}}
{{- with .Values.pods.securityContext }}
{{- toYaml . }}
{{- else -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- end -}}

{{- define "kvgauge.priorityClassName" -}}
{{- .Values.pods.priorityClassName | default (ternary (include "kvgauge.clusterName" (dict "root" . "component" "priority")) "" .Values.priorityClass.create) -}}
{{- end -}}

{{- /* Metadata of a pod template. */ -}}
{{- define "kvgauge.podMetadata" -}}
{{- with .root.Values.pods.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "kvgauge.labels" . | nindent 2 }}
  {{- with .root.Values.pods.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* Fields of a pod's spec but for containers, volumes and the account. */ -}}
{{- define "kvgauge.podFields" -}}
{{- $pods := .root.Values.pods -}}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $pods.terminationGracePeriodSeconds }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "kvgauge.podSecurityContext" .root | nindent 2 }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with omit $pods.nodeSelector "kubernetes.io/os" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if and $pods.affinity $pods.architectures }}
{{- fail "pods.architectures: does not go with pods.affinity; put the architectures into the affinity" }}
{{- end }}
{{- with $pods.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.architectures }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: kubernetes.io/arch
              operator: In
              values:
                {{- toYaml . | nindent 16 }}
{{- end }}
{{- with $pods.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and $pods.topologySpread.enabled (ne .component "demo") }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $pods.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "kvgauge.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- if ne .component "demo" }}
{{- with include "kvgauge.priorityClassName" .root }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
