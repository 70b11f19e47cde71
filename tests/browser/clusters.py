"""A real aggregator beside a fake API server, whose pods are whatever listens on ports of this machine."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.fake_api_server import FakeApiServer
from tests.cluster.test_aggregator import a_deployment, a_pod, review, running


@contextmanager
def aggregated(folder: Path, workloads: Mapping[tuple[str, str], Mapping[str, int]]) -> Iterator[str]:
    """The address of the page. `workloads`: (namespace, name) of Deployments, and the port of each of its pods."""
    with FakeApiServer(review=review) as api:
        for (namespace, name), pods in workloads.items():
            deployment = a_deployment(len(pods))
            deployment["metadata"].update(namespace=namespace, name=name)
            api.create("deployments", deployment)
            for pod_name, port in pods.items():
                pod = a_pod(pod_name, "127.0.0.1", port)
                pod["metadata"]["namespace"] = namespace
                pod["metadata"]["ownerReferences"][0]["name"] = f"{name}-6d4cf56db6"
                api.create("pods", pod)
        with running(folder, api) as aggregator:
            yield f"http://127.0.0.1:{aggregator.metrics}"
        assert api.complaints == []


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port on which nothing listens, and nothing else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
