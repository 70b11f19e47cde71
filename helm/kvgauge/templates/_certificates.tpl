{{- /* Serving certificates. All take (dict "root" $ "component" NAME). */ -}}

{{- define "kvgauge.certificate.secretName" -}}
{{- $mode := .root.Values.certificates.mode -}}
{{- if eq $mode "given" -}}
{{- $given := get .root.Values.certificates.given .component -}}
{{- if not $given.secretName -}}
{{- fail (printf "certificates.given.%s.secretName: missing: certificates.mode is given" .component) -}}
{{- end -}}
{{- $given.secretName -}}
{{- else -}}
{{- /* Not one name for both, or cert-manager would find a Secret that Helm is about to delete. */ -}}
{{- printf "%s-%s" (include "kvgauge.componentName" .) (ternary "tls" "cert" (eq $mode "chart")) -}}
{{- end -}}
{{- end -}}

{{- /* A YAML list. KEDA's Service is always among the aggregator's: a certificate that is kept must serve it later too. */ -}}
{{- define "kvgauge.certificate.dnsNames" -}}
{{- range ternary (list "aggregator" "keda") (list .component) (eq .component "aggregator") }}
{{- $service := printf "%s.%s" (include "kvgauge.componentName" (dict "root" $.root "component" .)) $.root.Release.Namespace }}
- {{ $service }}.svc
- {{ $service }}.svc.cluster.local
{{- end }}
{{- end -}}

{{- /* Data of the Secret that mode chart makes, base64: that of the one which stands, else new and the same for the
whole rendering. The CA's key is thrown away. */ -}}
{{- define "kvgauge.certificate.made" -}}
{{- $memo := get .root.Values "madeCertificates" | default dict -}}
{{- if not (hasKey $memo .component) -}}
{{- $standing := lookup "v1" "Secret" .root.Release.Namespace (include "kvgauge.certificate.secretName" .) | default dict -}}
{{- $data := get $standing "data" | default dict -}}
{{- if not (and (get $data "ca.crt") (get $data "tls.crt") (get $data "tls.key")) -}}
{{- $days := int .root.Values.certificates.chart.validDays -}}
{{- $names := include "kvgauge.certificate.dnsNames" . | fromYamlArray -}}
{{- $authority := genCAWithKey "kvgauge" $days (genPrivateKey "ecdsa") -}}
{{- $leaf := genSignedCertWithKey (first $names | trunc 63) (list) $names $days $authority (genPrivateKey "ecdsa") -}}
{{- $data = dict "ca.crt" (b64enc $authority.Cert) "tls.crt" (b64enc $leaf.Cert) "tls.key" (b64enc $leaf.Key) -}}
{{- end -}}
{{- $_ := set $memo .component (pick $data "ca.crt" "tls.crt" "tls.key") -}}
{{- $_ := set .root.Values "madeCertificates" $memo -}}
{{- end -}}
{{- get $memo .component | toYaml -}}
{{- end -}}

{{- /* The CA, base64; empty where cert-manager's injector fills it in. */ -}}
{{- define "kvgauge.certificate.caBundle" -}}
{{- $mode := .root.Values.certificates.mode -}}
{{- if eq $mode "chart" -}}
{{- get (include "kvgauge.certificate.made" . | fromYaml) "ca.crt" -}}
{{- else if eq $mode "given" -}}
{{- $given := get .root.Values.certificates.given .component -}}
{{- if not $given.caBundle -}}
{{- fail (printf "certificates.given.%s.caBundle: missing: certificates.mode is given" .component) -}}
{{- end -}}
{{- $given.caBundle | trim | b64enc -}}
{{- end -}}
{{- end -}}

{{- /* Annotations of what must know the CA, with `annotations` of one's own. */ -}}
{{- define "kvgauge.certificate.annotations" -}}
{{- $all := deepCopy (.annotations | default dict) -}}
{{- if eq .root.Values.certificates.mode "certManager" -}}
{{- $_ := set $all "cert-manager.io/inject-ca-from" (printf "%s/%s" .root.Release.Namespace (include "kvgauge.componentName" .)) -}}
{{- end -}}
{{- with $all }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
