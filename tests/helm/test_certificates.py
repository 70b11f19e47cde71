"""Certificates: the API server must be able to verify what the pods serve with."""

import base64
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import helm_python
import pytest

from tests.helm.rendering import NAMESPACE, Manifest, Values, merged, named, of_kind, pod_specs, render
from tests.helm.switches import SWITCHES

CHART_MADE: Values = {"certificates": {"mode": "chart"}}


@pytest.fixture(scope="module")
def made() -> list[Manifest]:
    return render(CHART_MADE)


def bundles(manifests: Sequence[Manifest]) -> dict[str, str | None]:
    """Service -> CA, base64, as those know it who call the Service."""
    clients = [one["spec"] for one in of_kind(manifests, "APIService")]
    clients += [
        hook["clientConfig"] for one in of_kind(manifests, "MutatingWebhookConfiguration") for hook in one["webhooks"]
    ]
    found: dict[str, str | None] = {}
    for client in clients:
        assert found.setdefault(client["service"]["name"], client.get("caBundle")) == client.get("caBundle")
    return found


def handshake(data: Manifest, authority: str, name: str, folder: Path) -> None:
    """A TLS connection to a server with that Secret, by who knows only the CA. Raises ssl.SSLError."""
    files = {key: folder / key for key in ("tls.crt", "tls.key")}
    for key, file in files.items():
        file.write_bytes(base64.b64decode(data[key]))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files["tls.crt"], files["tls.key"])
    client = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except (ssl.SSLError, OSError):
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        thread.join()


@pytest.mark.parametrize("service", ["kvgauge-aggregator", "kvgauge-injector", "kvgauge-keda"])
def test_what_the_chart_makes_is_verified_for_the_service(made: list[Manifest], service: str, tmp_path: Path) -> None:
    owner = "kvgauge-aggregator" if service == "kvgauge-keda" else service
    secret = named(made, "Secret", f"{owner}-tls")
    authority = bundles(made)[owner]
    assert authority
    assert secret["type"] == "kubernetes.io/tls"
    assert secret["data"]["ca.crt"] == authority
    handshake(secret["data"], authority, f"{service}.{NAMESPACE}.svc", tmp_path)


def test_the_keys_of_the_two_are_their_own(made: list[Manifest], tmp_path: Path) -> None:
    injector = named(made, "Secret", "kvgauge-injector-tls")
    authority = bundles(made)["kvgauge-aggregator"]
    assert authority
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(injector["data"], authority, f"kvgauge-injector.{NAMESPACE}.svc", tmp_path)


def test_every_pod_mounts_the_secret_that_there_is(made: list[Manifest]) -> None:
    cases = {
        "chart": (made, {one["metadata"]["name"] for one in of_kind(made, "Secret")}),
        "certManager": (manager := render(), {one["spec"]["secretName"] for one in of_kind(manager, "Certificate")}),
        "given": (render(SWITCHES["given certificates"]), {"a", "b"}),
    }
    for manifests, there in cases.values():
        mounted = {
            volume["secret"]["secretName"]
            for spec in pod_specs(manifests)
            for volume in spec["volumes"]
            if "secret" in volume
        }
        assert len(mounted) == 2
        assert mounted <= there


def test_cert_manager_signs_for_the_services_and_fills_the_ca_in() -> None:
    manifests = render()
    certificates = {one["metadata"]["name"]: one for one in of_kind(manifests, "Certificate")}
    issuers = {one["metadata"]["name"]: one["spec"] for one in of_kind(manifests, "Issuer")}
    for role in ("aggregator", "injector"):
        spec = certificates[f"kvgauge-{role}"]["spec"]
        assert f"kvgauge-{role}.{NAMESPACE}.svc" in spec["dnsNames"]
        signer = issuers[spec["issuerRef"]["name"]]
        authority = next(
            one for one in certificates.values() if one["spec"]["secretName"] == signer["ca"]["secretName"]
        )
        assert authority["spec"]["isCA"] is True
        assert issuers[authority["spec"]["issuerRef"]["name"]] == {"selfSigned": {}}
    for kind, role in (("APIService", "aggregator"), ("MutatingWebhookConfiguration", "injector")):
        for one in of_kind(manifests, kind):
            assert one["metadata"]["annotations"]["cert-manager.io/inject-ca-from"] == f"{NAMESPACE}/kvgauge-{role}"
    assert set(bundles(manifests).values()) == {None}
    assert of_kind(manifests, "Secret") == []


def test_an_issuer_of_ones_own_replaces_the_chain() -> None:
    manifests = render(SWITCHES["another issuer"])
    assert of_kind(manifests, "Issuer") == []
    refs = [one["spec"]["issuerRef"] for one in of_kind(manifests, "Certificate")]
    assert refs == [{"name": "ca", "kind": "ClusterIssuer"}] * 2


def test_a_given_ca_is_handed_on() -> None:
    found = {name: base64.b64decode(ca or "") for name, ca in bundles(render(SWITCHES["given certificates"])).items()}
    assert found == {
        "kvgauge-aggregator": b"-----BEGIN CERTIFICATE-----\nAAAA",
        "kvgauge-injector": b"-----BEGIN CERTIFICATE-----\nBBBB",
    }


@pytest.mark.parametrize("missing", ["secretName", "caBundle"])
def test_what_is_not_given_is_named(missing: str) -> None:
    values = merged(SWITCHES["given certificates"], {"certificates": {"given": {"injector": {missing: ""}}}})
    with pytest.raises(helm_python.HelmRenderError, match=rf"certificates\.given\.injector\.{missing}: missing"):
        render(values)


def test_no_certificate_is_made_for_what_is_off() -> None:
    for mode in ("chart", "certManager"):
        off: Values = {"certificates": {"mode": mode}, "aggregator": {"enabled": False}, "injector": {"enabled": False}}
        assert render(off) == []
