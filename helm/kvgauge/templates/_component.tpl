{{- /* The objects that aggregator and injector have alike. All take (dict "root" $ "component" NAME). */ -}}

{{- /* `args` and `ports` are what differs; `token` whether the pod talks to the API server. */ -}}
{{- define "kvgauge.deployment" -}}
{{- $values := get .root.Values .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "kvgauge.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kvgauge.labels" . | nindent 4 }}
spec:
  replicas: {{ $values.replicas }}
  revisionHistoryLimit: 3
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels:
      {{- include "kvgauge.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      {{- include "kvgauge.podMetadata" . | trim | nindent 6 }}
    spec:
      serviceAccountName: {{ include "kvgauge.serviceAccountName" . }}
      automountServiceAccountToken: {{ .token }}
      {{- include "kvgauge.podFields" . | nindent 6 }}
      containers:
        - name: {{ .component }}
          image: {{ include "kvgauge.image" .root | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [/opt/kvgauge/bin/kvgauge]
          args:
            - {{ .component }}
            - --port={{ $values.port }}
            - --metrics-port=9839
            - --tls-cert=/etc/kvgauge/tls/tls.crt
            - --tls-key=/etc/kvgauge/tls/tls.key
            - --log-format={{ $values.logFormat }}
            - --log-level={{ $values.logLevel }}
            {{- range .args }}
            - {{ . | quote }}
            {{- end }}
            {{- range $values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          ports:
            - name: https
              containerPort: {{ $values.port }}
              protocol: TCP
            - name: metrics
              containerPort: 9839
              protocol: TCP
            {{- with .grpcPort }}
            - name: grpc
              containerPort: {{ . }}
              protocol: TCP
            {{- end }}
          startupProbe:
            httpGet:
              path: /livez
              port: metrics
            periodSeconds: 2
            failureThreshold: 30
          livenessProbe:
            httpGet:
              path: /livez
              port: metrics
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet:
              path: /readyz
              port: metrics
            periodSeconds: 5
            timeoutSeconds: 3
          {{- with .root.Values.pods.drainSeconds }}
          lifecycle:
            preStop:
              exec:
                command: [/opt/kvgauge/bin/python, -c, {{ printf "import time; time.sleep(%v)" . | quote }}]
          {{- end }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          securityContext:
            {{- include "kvgauge.securityContext" . | nindent 12 }}
          volumeMounts:
            - name: tls
              mountPath: /etc/kvgauge/tls
              readOnly: true
            - name: tmp
              mountPath: /tmp
      volumes:
        - name: tls
          secret:
            secretName: {{ include "kvgauge.certificate.secretName" . }}
            defaultMode: 0440
        - name: tmp
          emptyDir:
            medium: Memory
            sizeLimit: 16Mi
{{- end -}}

{{- define "kvgauge.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "kvgauge.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kvgauge.labels" . | nindent 4 }}
spec:
  type: ClusterIP
  selector:
    {{- include "kvgauge.selectorLabels" . | nindent 4 }}
  ports:
    - name: https
      port: 443
      targetPort: https
      protocol: TCP
{{- end -}}

{{- define "kvgauge.serviceAccount" -}}
{{- $account := (get .root.Values .component).serviceAccount -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "kvgauge.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kvgauge.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{- define "kvgauge.podDisruptionBudget" -}}
{{- $budget := (get .root.Values .component).podDisruptionBudget -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "kvgauge.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kvgauge.labels" . | nindent 4 }}
spec:
  {{- if $budget.minAvailable }}
  minAvailable: {{ $budget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ $budget.maxUnavailable }}
  {{- end }}
  # A pod that is not ready serves nobody and must not hold up a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "kvgauge.selectorLabels" . | nindent 6 }}
{{- end -}}

{{- /* `kedaPort` and `sidecarPort` where there are any; `api` whether the pod talks to the API server. */ -}}
{{- define "kvgauge.networkPolicy" -}}
{{- $policy := .root.Values.networkPolicy -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "kvgauge.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kvgauge.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "kvgauge.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    # The API server calls from an address that no selector names.
    - ports:
        - port: {{ (get .root.Values .component).port }}
          protocol: TCP
    - ports:
        - port: 9839
          protocol: TCP
      {{- with $policy.monitoringFrom }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- with .kedaPort }}
    - ports:
        - port: {{ . }}
          protocol: TCP
      {{- with $policy.kedaFrom }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
  egress:
    - ports:
        - port: 53
          protocol: UDP
        - port: 53
          protocol: TCP
    {{- if .api }}
    - ports:
        {{- range $policy.apiServerPorts }}
        - port: {{ . }}
          protocol: TCP
        {{- end }}
    {{- end }}
    {{- with .sidecarPort }}
    - ports:
        - port: {{ . }}
          protocol: TCP
      to:
        - namespaceSelector:
            {{- if $.root.Values.watchNamespace }}
            matchLabels:
              kubernetes.io/metadata.name: {{ $.root.Values.watchNamespace }}
            {{- else }} {}
            {{- end }}
    {{- with $policy.extraEgress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end -}}
