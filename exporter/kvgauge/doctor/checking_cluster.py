"""From the facts of a cluster to findings: one pure function for each link, from the pods to the metrics API."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Set

from kvgauge.cluster.names import SIDECAR
from kvgauge.cluster.reading import ReadingError, read
from kvgauge.cluster.settings import ServingSettings
from kvgauge.doctor.asking import Answer, part, text
from kvgauge.doctor.autoscalers import Condition, conditions_of
from kvgauge.doctor.checking_hpas import hpas
from kvgauge.doctor.findings import Finding, fail, ok, since, skip, typed, warn, words
from kvgauge.doctor.looking_around import APISERVICE, LOAD, ClusterFacts, with_sidecars
from kvgauge.doctor.telling import age_seconds, unread

STALE_SECONDS = 15.0
"""The aggregator drops a pod's figures after 10 s; what is older was not made by it as it is set up."""
LINKS = ("pods", "sidecars", "apiservice", "aggregator", "metric", "hpa")
_PLAIN_PORT = ServingSettings.model_fields["metrics_port"].default
_TIME_OUT = re.compile("time(d |-)?out|deadline exceeded", re.IGNORECASE)
_ALL_LABELS = "kvgauge.dev/inject,kvgauge.dev/sidecar"


def check_cluster(facts: ClusterFacts, wall_seconds: float) -> list[Finding]:
    """All findings of the cluster."""
    reached = api_server(facts)
    if reached.status == "fail":
        return [reached, *(skip(name, "the API server was not reached") for name in LINKS)]
    return [
        reached,
        pods(facts),
        *sidecars(facts),
        apiservice(facts, wall_seconds),
        aggregator(facts),
        *metrics(facts, wall_seconds),
        *hpas(facts, wall_seconds),
    ]


def api_server(facts: ClusterFacts) -> Finding:
    answer = facts.version
    if answer.good:
        return ok("api-server", f"{facts.server} is Kubernetes {words(answer.document.get('gitVersion')) or 'unknown'}")
    if answer.status == 403:
        return warn("api-server", f"{facts.server} does not tell its version", "kubectl auth can-i get /version")
    command = "kubectl auth whoami" if answer.status == 401 else "kubectl version"
    return fail("api-server", f"{facts.server}: {answer.why}", command)


def pods(facts: ClusterFacts) -> Finding:
    where = f"-n {facts.namespace}" if facts.namespace else "-A"
    answer = facts.pods
    if not answer.good:
        return unread("pods", answer, f"list pods {where}")
    found = with_sidecars(answer)
    if not found:
        home = f"namespace {facts.namespace}" if facts.namespace else "the cluster"
        return fail("pods", f"no pod of {home} has the label {_ALL_LABELS.split(',')[1]}=true", labels_of(where))
    ready = sum(pod.ready for pod in found)
    more = " at least" if answer.cut else ""
    homes = Counter(pod.key.namespace for pod in found)
    told = f"{len(found)} with a sidecar{more}, {ready} ready, in {', '.join(sorted(homes)[:5])}"
    if not ready:
        return fail("pods", told, f"kubectl get pods {where} -l kvgauge.dev/sidecar=true")
    return ok("pods", told)


def labels_of(where: str) -> str:
    """The command that shows which pods ask for a sidecar and which have one."""
    return f"kubectl get pods {where} -L {_ALL_LABELS}"


def sidecars(facts: ClusterFacts) -> Iterator[Finding]:
    """What each sidecar answers through the API server. The first refusal stands for all."""
    if not facts.sidecars:
        yield skip("sidecars", "no ready pod with a sidecar was found")
        return
    refused = next((pod for pod, answer in facts.sidecars.items() if answer.refused), None)
    if refused is not None:
        namespace = refused.split("/")[0]
        yield unread("sidecars", facts.sidecars[refused], f"get pods --subresource=proxy -n {namespace}")
        return
    good, ages = [], []
    for pod, answer in facts.sidecars.items():
        namespace, name = pod.split("/")
        command = f"kubectl -n {namespace} logs {name} -c kvgauge --tail=20"
        if not answer.good:
            told = answer.why if answer.status in (0, 503) else f"HTTP {answer.status}"
            yield fail("sidecars", f"{pod} does not answer: {told}", command)
            continue
        why = _invalid(answer)
        if why is not None:
            yield fail("sidecars", f"{pod}: {why}", f"kubectl get --raw {typed(answer.path)}")
        else:
            good.append(pod)
            age = answer.document.get("age_seconds")
            ages += [age] if isinstance(age, int | float) else []
    if good:
        old = f", the oldest {since(max(ages))} old" if ages else ""
        told = f"{len(good)} of {len(facts.sidecars)} asked give valid advice{old}: {', '.join(good[:4])}"
        yield ok("sidecars", told)


def _invalid(answer: Answer) -> str | None:
    try:
        reading = read(json.dumps(answer.document).encode(), 0.0, 0.0, math.inf)
    except ReadingError as error:
        return f"its answer is no advice ({error.reason})"
    if reading.valid:
        return None
    said = answer.document.get("explanation")
    why = words(said[0]) if isinstance(said, list) and said else "it does not say why"
    return f"its advice is not valid: {why}"


def apiservice(facts: ClusterFacts, wall_seconds: float) -> Finding:
    answer = facts.apiservice
    command = f"kubectl describe apiservice {APISERVICE}"
    if answer.status == 404:
        wanted = [scaled.hpa.where for scaled in facts.scaled if any(m.kind != "External" for m in scaled.hpa.metrics)]
        told = f"{APISERVICE} does not exist"
        if wanted:
            return fail("apiservice", f"{told}, and {wanted[0]} needs it", _installed(facts))
        return warn("apiservice", f"{told}; without it only KEDA can follow", _installed(facts))
    if not answer.good:
        return unread("apiservice", answer, f"get apiservices/{APISERVICE}")
    service = part(answer.document, "spec", "service")
    behind = f"{words(service.get('namespace'))}/{words(service.get('name'))}"
    available = next(
        (each for each in conditions_of(part(answer.document, "status")) if each.type == "Available"), None
    )
    if available is None:
        return fail("apiservice", f"{APISERVICE} ({behind}) has no condition Available yet", command)
    if available.status != "True":
        return fail("apiservice", *_unavailable(available, behind, wall_seconds))
    owner = text(part(answer.document, "metadata", "labels"), "app.kubernetes.io/name")
    if owner and owner != "kvgauge":
        return warn("apiservice", f"{APISERVICE} is available, but belongs to {words(owner)} ({behind})", command)
    return ok("apiservice", f"{APISERVICE} is available, served by {behind}")


def _installed(facts: ClusterFacts) -> str:
    """How it was installed: which values, where the release is known."""
    for item in facts.aggregators.items:
        metadata = part(item, "metadata")
        release = text(part(metadata, "labels"), "app.kubernetes.io/instance")
        if release:
            return f"helm get values {typed(release)} --all -n {text(metadata, 'namespace')}"
    return "helm list -A"


def _unavailable(available: Condition, behind: str, wall_seconds: float) -> tuple[str, str]:
    """What is said of it, and the command by the reason, as docs/install.md lists them."""
    namespace, name = behind.split("/")
    reason, age = available.reason, age_seconds(available.changed, wall_seconds)
    lasting = f" for {since(age)}" if age is not None else ""
    told = f"{APISERVICE} ({behind}) is {words(available.status)}{lasting}: {words(reason)}: {words(available.message)}"
    aggregator_pods = f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=aggregator"
    if reason in ("ServiceNotFound", "ServicePortError"):
        return told, f"kubectl -n {namespace} get service {name}"
    if reason in ("MissingEndpoints", "EndpointsNotFound", "ServiceAccessError"):
        return told, aggregator_pods
    if _TIME_OUT.search(available.message):
        more = "; the API server does not reach the pods' port: a firewall or a network policy"
        return told + more, f"kubectl -n {namespace} get networkpolicies,endpointslices,pods -o wide"
    return told, f"kubectl -n {namespace} logs -l app.kubernetes.io/component=aggregator --tail=30"


def aggregator(facts: ClusterFacts) -> Finding:
    answer = facts.aggregators
    if not answer.good:
        return unread("aggregator", answer, "list pods -A")
    where = "-A -l app.kubernetes.io/component=aggregator"
    if not answer.items:
        return fail("aggregator", "no pod of an aggregator is there", "helm list -A")
    ready, names = [], []
    for item in answer.items:
        metadata = part(item, "metadata")
        names.append(f"{text(metadata, 'namespace')}/{text(metadata, 'name')}")
        states = [each.status for each in conditions_of(part(item, "status")) if each.type == "Ready"]
        ready.append(states == ["True"])
    told = f"{sum(ready)} of {len(ready)} pods are ready"
    if not any(ready):
        namespace, name = names[0].split("/")
        return fail("aggregator", told, f"kubectl -n {namespace} describe pod {name}")
    if not all(ready):
        return warn("aggregator", f"{told}; not {names[ready.index(False)]}", f"kubectl get pods {where}")
    return ok("aggregator", f"{told}: {', '.join(names[:3])}")


def metrics(facts: ClusterFacts, wall_seconds: float) -> Iterator[Finding]:
    """The load of each namespace's pods, read as HPA reads it."""
    why = _unreadable(facts)
    if why is not None:
        yield skip("metric", why)
        return
    if not facts.loads:
        yield skip("metric", "there are no pods to read it of")
    for namespace, answer in facts.loads.items():
        name, command = f"metric {namespace}", f"kubectl get --raw {typed(answer.path)}"
        if answer.refused:
            asked = f"get pods.custom.metrics.k8s.io --subresource={LOAD} -n {namespace}"
            yield unread(name, answer, asked)
        elif not answer.good:
            yield fail(name, f"{LOAD}: {answer.why}", _unread_command(answer, facts, command))
        elif not answer.items:
            yield fail(name, f"{LOAD}: the answer is empty", command)
        else:
            ready = {pod.key.name for pod in with_sidecars(facts.pods) if pod.ready and pod.key.namespace == namespace}
            yield _metric(name, answer, ready, wall_seconds)
    homes = {pod.key.namespace for pod in with_sidecars(facts.pods)} | {each.hpa.namespace for each in facts.scaled}
    left = sorted(homes - facts.loads.keys())
    if left:
        told = f"only {len(facts.loads)} of {len(homes)} namespaces were looked at"
        yield warn("metric", told, f"kvgauge doctor --cluster --namespace {left[0]}")


def _unread_command(answer: Answer, facts: ClusterFacts, otherwise: str) -> str:
    if answer.status != 503:
        return otherwise
    # Without a document it is the API server that speaks: it has not got through to the aggregator.
    return _polls(facts) if answer.document else f"kubectl describe apiservice {APISERVICE}"


def _polls(facts: ClusterFacts) -> str:
    """Shows how the aggregator fares with the pods. It serves that on a port of its own, in the clear."""
    shown = " | grep -E '^kvgauge_(pods|polls_total)'"
    for item in facts.aggregators.items:
        metadata = part(item, "metadata")
        where = f"/api/v1/namespaces/{text(metadata, 'namespace')}/pods/{text(metadata, 'name')}:{_PLAIN_PORT}"
        return f"kubectl get --raw {typed(where + '/proxy/metrics')}{shown}"
    return f"kubectl get pods -A -l {SIDECAR}=true -o wide"


def _metric(name: str, answer: Answer, ready: Set[str], wall_seconds: float) -> Finding:
    """Of which pods it is told, how old, and of which ready ones it is not."""
    values = {text(part(item, "describedObject"), "name"): words(item.get("value")) for item in answer.items}
    ages = [age_seconds(text(item, "timestamp"), wall_seconds) for item in answer.items]
    known = [age for age in ages if age is not None]
    old = f"the oldest {since(max(known))} old" if known else "without an age"
    told = f"{LOAD} of {len(values)} pods, {old}"
    silent = sorted(ready - values.keys())
    if silent:
        home = name.split()[-1]
        command = f"kubectl -n {home} logs {silent[0]} -c kvgauge --tail=20"
        return warn(name, f"{told}; ready pods of which it is not told: {', '.join(silent[:4])}", command)
    listed = ", ".join(f"{words(pod)} {value}" for pod, value in list(values.items())[:4])
    stale = not known or max(known) > STALE_SECONDS
    return (
        warn(name, f"{told}: {listed}", f"kubectl get --raw {typed(answer.path)}")
        if stale
        else ok(name, f"{told}: {listed}")
    )


def _unreadable(facts: ClusterFacts) -> str | None:
    if facts.apiservice.status == 404:
        return f"{APISERVICE} does not exist"
    found = conditions_of(part(facts.apiservice.document, "status"))
    if facts.apiservice.good and not any(each.type == "Available" and each.status == "True" for each in found):
        return f"{APISERVICE} is not available"
    return None
