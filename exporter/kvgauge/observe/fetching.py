"""Bounded HTTP reads from one neighbour on loopback: bounded in size and time, no redirects, no proxies, no retries."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence

import urllib3

from kvgauge.observe.records import SourceError

MAX_BODY_BYTES = 8 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
_ACCEPT = "text/plain;version=0.0.4, application/json;q=0.9, */*;q=0.1"


class Endpoint:
    """One HTTP server, read over a kept-alive connection by one thread.

    `timeout_seconds` bounds the connection, every wait for bytes, and the body as a whole.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float,
        api_key: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.max_body_bytes = max_body_bytes
        # An answer in another encoding is refused, so that no small body can unfold into a large one.
        self._headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity", "User-Agent": "kvgauge"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)

    def get(self, path: str) -> bytes:
        """The body of `path`. Raises SourceError with one of: refused, timeout, tls, protocol, unauthorized,
        http_status, content_encoding, body_too_large."""
        deadline = time.monotonic() + self.timeout_seconds
        try:
            response = self._pool.request(
                "GET",
                self.base_url + path,
                headers=self._headers,
                timeout=urllib3.Timeout(connect=self.timeout_seconds, read=self.timeout_seconds),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                _check(path, response)
                body = b"".join(self._chunks(path, response, deadline))
            except BaseException:
                response.close()
                raise
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise _translated(path, error) from error
        return body

    def get_json(self, path: str) -> Mapping[str, object] | Sequence[object]:
        """The JSON object or array at `path`. Raises as `get` does, and `not_json` when it is anything else."""
        body = self.get(path)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SourceError("not_json", f"GET {path} did not answer JSON") from error
        if not isinstance(answer, dict | list):
            raise SourceError("not_json", f"GET {path} answered neither a JSON object nor an array")
        return answer

    def close(self) -> None:
        """Drops the connection."""
        self._pool.clear()

    def _chunks(self, path: str, response: urllib3.BaseHTTPResponse, deadline: float) -> Iterator[bytes]:
        size = 0
        while chunk := response.read1(_CHUNK_BYTES):
            size += len(chunk)
            if size > self.max_body_bytes:
                raise SourceError("body_too_large", f"GET {path} answered more than {self.max_body_bytes} bytes")
            if time.monotonic() > deadline:
                raise SourceError("timeout", f"GET {path} was not answered in full within {self.timeout_seconds:g} s")
            yield chunk


def _check(path: str, response: urllib3.BaseHTTPResponse) -> None:
    if response.status in {401, 403}:
        raise SourceError("unauthorized", f"GET {path} answered {response.status}")
    if response.status != 200:
        raise SourceError("http_status", f"GET {path} answered {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceError("content_encoding", f"GET {path} answered in an encoding that was not asked for")


def _translated(path: str, error: urllib3.exceptions.HTTPError) -> SourceError:
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return SourceError("refused", f"GET {path}: no connection")
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return SourceError("timeout", f"GET {path}: no answer in time")
    if isinstance(error, urllib3.exceptions.SSLError):
        return SourceError("tls", f"GET {path}: the TLS handshake failed")
    return SourceError("protocol", f"GET {path}: the connection broke or did not speak HTTP")
