"""Every switch of the chart turned the other way, one entry each."""

from collections.abc import Mapping

from tests.helm.rendering import Values

SWITCHES: Mapping[str, Values] = {
    "aggregator off": {"aggregator": {"enabled": False}},
    "injector off": {"injector": {"enabled": False}},
    "custom metrics off": {"customMetrics": {"enabled": False}},
    "external metrics": {"externalMetrics": {"enabled": True}},
    "no grant": {"customMetrics": {"hpaController": {"grant": False}}},
    "keda": {"aggregator": {"keda": {"enabled": True}}},
    "keda with TLS": {"aggregator": {"keda": {"enabled": True, "tls": True}}},
    "scale-in helper": {"aggregator": {"scaleInHelper": True}},
    "events": {"aggregator": {"events": True}},
    "one namespace": {"watchNamespace": "llm"},
    "pod selector": {"aggregator": {"podSelector": "team=llm"}},
    "no budgets": {
        "aggregator": {"podDisruptionBudget": {"enabled": False}},
        "injector": {"podDisruptionBudget": {"enabled": False}},
    },
    "budgets that keep": {
        "aggregator": {"podDisruptionBudget": {"minAvailable": "50%"}},
        "injector": {"podDisruptionBudget": {"minAvailable": 1}},
    },
    "other accounts": {
        "aggregator": {"serviceAccount": {"create": False, "name": "theirs"}},
        "injector": {"serviceAccount": {"create": False, "name": "theirs"}},
    },
    "given certificates": {
        "certificates": {
            "mode": "given",
            "given": {
                "aggregator": {"secretName": "a", "caBundle": "-----BEGIN CERTIFICATE-----\nAAAA\n"},
                "injector": {"secretName": "b", "caBundle": "-----BEGIN CERTIFICATE-----\nBBBB\n"},
            },
        }
    },
    "another issuer": {"certificates": {"certManager": {"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}}},
    "network policies": {"networkPolicy": {"enabled": True}},
    "narrow network policies": {
        "networkPolicy": {
            "enabled": True,
            "monitoringFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "kedaFrom": [{"podSelector": {}}],
            "extraEgress": [{"ports": [{"port": 9900, "protocol": "TCP"}]}],
        }
    },
    "pod monitors": {"monitoring": {"podMonitor": {"enabled": True, "labels": {"a": "b"}, "podTargetLabels": ["app"]}}},
    "rules": {"monitoring": {"rules": {"enabled": True, "labels": {"a": "b"}}}},
    "dashboards": {"monitoring": {"dashboards": {"enabled": True}}},
    "priority class": {"priorityClass": {"create": True}},
    "another priority class": {"pods": {"priorityClassName": "system-cluster-critical"}},
    "architectures": {"pods": {"architectures": ["amd64", "arm64"]}},
    "affinity": {"pods": {"affinity": {"podAntiAffinity": {}}}},
    "no spread": {"pods": {"topologySpread": {"enabled": False}}},
    "everything on pods": {
        "commonLabels": {"team": "llm"},
        "imagePullSecrets": [{"name": "pull"}],
        "pods": {
            "annotations": {"a": "b"},
            "labels": {"c": "d"},
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "securityContext": {"runAsNonRoot": True},
        },
    },
    "webhook": {
        "injector": {
            "webhook": {
                "timeoutSeconds": 5,
                "excludedNamespaces": ["other"],
                "namespaceLabels": {"llm": "true"},
                "matchConditions": [{"name": "no-mirror", "expression": "!has(object.metadata.annotations)"}],
                "annotations": {"a": "b"},
            }
        }
    },
    "gpu by runtime class": {"gpu": {"mode": "runtimeClass", "runtimeClassName": "other"}},
    "gpu by the node": {"gpu": {"mode": "hostPath"}, "sidecar": {"cpuLimit": "100m", "assignedUser": True}},
    "native sidecars": {"sidecar": {"native": "always"}},
    "image by digest": {"image": {"registry": "mirror/team", "digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"}},
    "more flags": {"aggregator": {"extraArgs": ["--interval=2s"]}, "injector": {"extraArgs": ["--log-level=debug"]}},
    "demo": {"demo": {"enabled": True}},
    "demo without autoscaler": {"demo": {"enabled": True, "autoscaler": False}},
    "workload by its pods": {
        "workloads": [{"name": "llama", "kind": "Deployment", "namespace": "llm", "min": 1, "max": 8, "hpa": {}}]
    },
    "workload by its count": {
        "workloads": [{"name": "qwen", "kind": "LeaderWorkerSet", "min": 0, "max": 8, "hpa": {"metric": "object"}}]
    },
    "workload by KEDA": {
        "aggregator": {"keda": {"enabled": True}},
        "workloads": [
            {"name": "phi", "kind": "StatefulSet", "namespace": "llm", "min": 0, "max": 8, "scaledObject": {}}
        ],
    },
}

REFUSED = {
    frozenset(pair)
    for pair in (
        ("aggregator off", "demo"),
        ("aggregator off", "workload by its pods"),
        ("aggregator off", "workload by its count"),
        ("aggregator off", "workload by KEDA"),
        ("custom metrics off", "demo"),
        ("custom metrics off", "workload by its pods"),
        ("custom metrics off", "workload by its count"),
        ("one namespace", "demo"),
        ("one namespace", "demo without autoscaler"),
        ("keda with TLS", "workload by KEDA"),
        ("architectures", "affinity"),
    )
}
"""Pairs that contradict each other, and so must be refused."""
