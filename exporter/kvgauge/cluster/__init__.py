"""Many pods: what their sidecars say, served to autoscalers; and the webhook that puts a sidecar into a pod.

Needs the extra `cluster`. The sidecar never imports it.
"""
