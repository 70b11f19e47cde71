"""Commands that can be typed as they stand: on this host, or, of a pod, where its kubectl is."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kvgauge.doctor.findings import typed
from kvgauge.doctor.settings import DoctorSettings

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_SECRET = "--engine-api-key"
_NOT_THE_SIDECARS = ("--sidecar-url", "--kubeconfig", "--namespace")
_SWITCHES = frozenset({"--json", "--print-config"})
_SCOPES = frozenset({"--local", "--no-local", "--cluster", "--no-cluster"})
_IMAGE_PROGRAM = "/opt/kvgauge/bin/kvgauge"
_CONTAINER = "kvgauge"


@dataclass(frozen=True, slots=True)
class Here:
    """What commands need to know to be typed as they are."""

    engine_url: str
    sidecar_url: str
    engine: str = "auto"
    pod: str | None = None
    namespace: str | None = None
    flags: tuple[str, ...] = ()
    """Those that the doctor was called with; a further call takes them again."""
    program: str = "kvgauge"
    engine_url_is_given: bool = True
    key_is_given: bool = False

    @classmethod
    def of(
        cls,
        settings: DoctorSettings,
        environ: Mapping[str, str] = os.environ,
        flags: Sequence[str] = (),
        program: str = "kvgauge",
    ) -> "Here":
        """The injector tells pod and namespace in the environment."""
        return cls(
            settings.engine_url,
            settings.address,
            settings.engine,
            environ.get("POD_NAME"),
            environ.get("POD_NAMESPACE"),
            tuple(_without(flags, (_SECRET,), _SWITCHES)),
            program,
            "engine_url" in settings.model_fields_set,
            settings.engine_api_key is not None,
        )

    @property
    def in_a_pod(self) -> bool:
        return bool(self.pod and self.namespace)

    def logs(self, otherwise: str) -> str:
        return f"{self._kubectl} logs {self.pod} --all-containers --tail=30" if self.in_a_pod else otherwise

    def logs_with(self, pattern: str, otherwise: str) -> str:
        """Lines of all containers' logs that match."""
        if not self.in_a_pod:
            return otherwise
        return f"{self._kubectl} logs {self.pod} --all-containers --tail=-1 | grep -iE {typed(pattern)}"

    def described(self, otherwise: str) -> str:
        return f"{self._kubectl} describe pod {self.pod}" if self.in_a_pod else otherwise

    def annotation(self, name: str, otherwise: str) -> str:
        """Of this pod."""
        if not self.in_a_pod:
            return otherwise
        escaped = name.replace(".", r"\.")
        return f"{self._kubectl} get pod {self.pod} -o jsonpath='{{.metadata.annotations.{escaped}}}'"

    def within(self, command: str) -> str:
        """A command of the image's, in the sidecar's container."""
        return f"{self._kubectl} exec {self.pod} -c {_CONTAINER} -- {command}" if self.in_a_pod else command

    def page(self, url: str, path: str, more: str = "") -> str:
        """Shows what is served there. The image has no curl: in a pod the API server is asked."""
        parts = urlsplit(url)
        if self.in_a_pod and parts.scheme == "http" and parts.hostname in _LOOPBACK:
            where = f"/api/v1/namespaces/{self.namespace}/pods/http:{self.pod}:{parts.port or 80}/proxy"
            return f"kubectl get --raw {typed(where + path)}{more}"
        return f"curl -sS -m 5 {typed(url + path)}{more}"

    def listeners(self, url: str) -> str:
        """Shows who listens there, or, of another host, whether anybody does."""
        parts = urlsplit(url)
        if not is_local(url):
            return f"curl -svo /dev/null -m 5 {typed(url)}"
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"ss -ltnp 'sport = :{port}'"

    def again(self, *flags: str) -> str:
        """This very call, with these flags changed. They come in pairs."""
        kept = _without(self.flags, flags[::2])
        return self.kvgauge("doctor", *kept, *flags)

    def sidecar(self) -> str:
        """Starts a sidecar as the doctor was told of one."""
        kept = list(_without(self.flags, (*_NOT_THE_SIDECARS, "--port"), _SCOPES))
        port = urlsplit(self.sidecar_url).port
        return self.kvgauge("sidecar", *kept, *(() if port in (None, 9838) else ("--port", str(port))))

    def top(self) -> str:
        return self.kvgauge("top", "--once", "--url", self.sidecar_url)

    def kvgauge(self, *words: str) -> str:
        program = _IMAGE_PROGRAM if self.in_a_pod else self.program
        return self.within(" ".join([program, *map(_quoted, words)]))

    @property
    def _kubectl(self) -> str:
        return f"kubectl -n {self.namespace}"


def is_local(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def invoked() -> str:
    """How this program is called where it was called now."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return f"{_quoted(sys.executable)} -m kvgauge"
    found = shutil.which("kvgauge")
    return "kvgauge" if found is not None and Path(found).resolve() == own.resolve() else _quoted(str(own))


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}={typed(value)}" if equals and word.startswith("--") else typed(word)


def _without(flags: Sequence[str], names: Sequence[str], switches: frozenset[str] = frozenset()) -> Sequence[str]:
    """The flags without those that have a value (`--name value`, `--name=value`), and without the switches."""
    kept = []
    skipping = False
    for flag in flags:
        if skipping:
            skipping = False
        elif flag in names:
            skipping = True
        elif flag not in switches and flag.partition("=")[0] not in names:
            kept.append(flag)
    return kept
