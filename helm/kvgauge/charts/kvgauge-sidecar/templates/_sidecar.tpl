{{- /*
The sidecar for a pod spec of one's own. All take one dict; what is not given has the sidecar's own default:

  image            such as kvgauge:0.1.0; needed
  imagePullPolicy  Always, IfNotPresent or Never
  native           init container that keeps running (default true); false before Kubernetes 1.29
  engineUrl        where the engine serves in this pod (http://127.0.0.1:8000)
  engine           its kind (auto)
  model            path or id of the model, where the engine does not tell
  port             where the sidecar serves (9838)
  sloTtft, sloTpot such as 2s and 80ms
  gpu              dict: mode none, env, runtimeClass, dra or hostPath; runtimeClassName (nvidia); claims, the names of
                   the engine's resource claims in the pod's spec, for dra; driverLibrary, the node's libnvidia-ml.so.1,
                   for hostPath, which makes the container privileged
  spoolVolume      name of the pod's volume that the agent in the engine writes to
  resources        requests and limits
  securityContext  of the container
  env              more variables, as a container's env
  extraArgs        more flags of `kvgauge sidecar`

  initContainers:                     with native, else at the end of containers:
    {{- include "kvgauge.sidecar.container" $sidecar | nindent 4 }}
  volumes:
    {{- include "kvgauge.sidecar.volumes" $sidecar | nindent 4 }}
  {{- include "kvgauge.sidecar.podFields" $sidecar | nindent 2 }}     in the pod's spec
  {{- include "kvgauge.sidecar.labels" $sidecar | nindent 4 }}        among its labels
  {{- include "kvgauge.sidecar.annotations" $sidecar | nindent 4 }}   among its annotations
*/ -}}

{{- define "kvgauge.sidecar.container" -}}
{{- $gpu := .gpu | default dict -}}
{{- $mode := $gpu.mode | default "none" -}}
{{- if not .image -}}
{{- fail "kvgauge.sidecar: image: missing, such as kvgauge:0.1.0" -}}
{{- end -}}
{{- if not (has $mode (list "none" "env" "runtimeClass" "dra" "hostPath")) -}}
{{- fail (printf "kvgauge.sidecar: gpu.mode: should be none, env, runtimeClass, dra or hostPath, not %v" $mode) -}}
{{- end -}}
{{- if and (eq $mode "dra") (not $gpu.claims) -}}
{{- fail "kvgauge.sidecar: gpu.claims: missing: the names of the engine's claims in the pod's resourceClaims" -}}
{{- end -}}
- name: kvgauge
  image: {{ .image | quote }}
  {{- with .imagePullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  {{- if include "kvgauge.sidecar.native" . }}
  restartPolicy: Always
  {{- end }}
  command: [/opt/kvgauge/bin/kvgauge]
  args:
    - sidecar
    - {{ printf "--port=%v" (.port | default 9838) | quote }}
    - {{ printf "--engine-url=%s" (.engineUrl | default "http://127.0.0.1:8000") | quote }}
    - --state-file=/var/lib/kvgauge/state.json
    {{- with .engine }}
    - {{ printf "--engine=%s" . | quote }}
    {{- end }}
    {{- with .model }}
    - {{ printf "--model=%s" . | quote }}
    {{- end }}
    {{- with .sloTtft }}
    - {{ printf "--slo-ttft=%v" . | quote }}
    {{- end }}
    {{- with .sloTpot }}
    - {{ printf "--slo-tpot=%v" . | quote }}
    {{- end }}
    {{- if .spoolVolume }}
    - --spool=/run/kvgauge
    {{- end }}
    {{- range .extraArgs }}
    - {{ . | quote }}
    {{- end }}
  {{- $env := .env | default list }}
  {{- if has $mode (list "env" "runtimeClass") }}
  {{- $env = concat $env (list
    (dict "name" "NVIDIA_VISIBLE_DEVICES" "value" "all")
    (dict "name" "NVIDIA_DRIVER_CAPABILITIES" "value" "utility"))
  }}
  {{- end }}
  {{- with $env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: kvgauge
      containerPort: {{ .port | default 9838 }}
      protocol: TCP
  # No readiness probe: the engine's readiness must not depend on who watches it.
  livenessProbe:
    httpGet:
      path: /livez
      port: kvgauge
    periodSeconds: 30
    timeoutSeconds: 10
    failureThreshold: 10
  {{- $resources := deepCopy (.resources | default (dict
    "requests" (dict "cpu" "10m" "memory" "64Mi")
    "limits" (dict "memory" "256Mi")))
  }}
  {{- if eq $mode "dra" }}
  {{- $claims := list }}
  {{- range $gpu.claims }}{{ $claims = append $claims (dict "name" .) }}{{ end }}
  {{- $_ := set $resources "claims" $claims }}
  {{- end }}
  resources:
    {{- toYaml $resources | nindent 4 }}
  securityContext:
    {{- if .securityContext }}
    {{- toYaml .securityContext | nindent 4 }}
    {{- else if eq $mode "hostPath" }}
    privileged: true
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    {{- else }}
    allowPrivilegeEscalation: false
    capabilities:
      drop: [ALL]
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
    {{- end }}
  volumeMounts:
    - name: kvgauge-state
      mountPath: /var/lib/kvgauge
    {{- with .spoolVolume }}
    - name: {{ . }}
      mountPath: /run/kvgauge
      readOnly: true
    {{- end }}
    {{- if eq $mode "hostPath" }}
    - name: kvgauge-driver
      mountPath: /usr/lib/libnvidia-ml.so.1
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "kvgauge.sidecar.native" -}}
{{- if or (not (hasKey . "native")) .native }}true{{ end -}}
{{- end -}}

{{- define "kvgauge.sidecar.volumes" -}}
{{- $gpu := .gpu | default dict -}}
# In memory: a volume on the node's disk would keep cluster autoscalers from emptying the node.
- name: kvgauge-state
  emptyDir:
    medium: Memory
    sizeLimit: 4Mi
{{- if eq ($gpu.mode | default "none") "hostPath" }}
- name: kvgauge-driver
  hostPath:
    path: {{ $gpu.driverLibrary | default "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1" }}
    type: File
{{- end }}
{{- end -}}

{{- define "kvgauge.sidecar.podFields" -}}
{{- $gpu := .gpu | default dict -}}
{{- if eq ($gpu.mode | default "none") "runtimeClass" -}}
runtimeClassName: {{ $gpu.runtimeClassName | default "nvidia" }}
{{- end -}}
{{- end -}}

{{- define "kvgauge.sidecar.labels" -}}
kvgauge.dev/sidecar: "true"
{{- end -}}

{{- define "kvgauge.sidecar.annotations" -}}
kvgauge.dev/port: {{ .port | default 9838 | quote }}
{{- end -}}
