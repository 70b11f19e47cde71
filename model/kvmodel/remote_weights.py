"""Config and exact weight sizes of a model that is not on this disk: headers by ranged requests, a few MiB in all.

The only part of the model that speaks to a network, and only when it is called.
"""

from collections.abc import Mapping
from typing import IO, cast

from kvmodel.architecture import LARGEST_CONFIG_BYTES, parse_config
from kvmodel.errors import ModelError, show
from kvmodel.safetensors import Tensor, parse_header, parse_index
from kvmodel.weights import INDEX, LARGEST_INDEX_BYTES, SINGLE, Weights, gather

_TIMEOUT_SECONDS = 30.0
_FIRST_BYTES = 2**18
_MOST_SHARDS = 2000
_CONFIG = "config.json"


def read_weights_from_hub(
    repo: str, *, revision: str = "main", endpoint: str | None = None, token: str | None = None
) -> Weights:
    """The weights of a model repository of the Hugging Face Hub, or of another `endpoint` that speaks as it does.

    Needs the package `huggingface_hub` for addresses and credentials. Raises ModelError: field `huggingface_hub` where
    it is not installed, `repo` for a name it does not accept, else the file and field at fault.
    """
    folder_url, headers = _hub(repo, revision, endpoint, token)
    return read_weights_from_url(folder_url, headers=headers)


def read_config_from_hub(
    repo: str, *, revision: str = "main", endpoint: str | None = None, token: str | None = None
) -> Mapping[str, object]:
    """The config.json of such a repository. Raises ModelError as `read_weights_from_hub`, and field `config`."""
    folder_url, headers = _hub(repo, revision, endpoint, token)
    address = folder_url + _CONFIG
    found = _get(address, headers, 0, LARGEST_CONFIG_BYTES + 1)
    if found is None:
        raise ModelError("config", "there is no such file", address)
    return parse_config(found[0], address)


def _hub(repo: str, revision: str, endpoint: str | None, token: str | None) -> tuple[str, Mapping[str, str]]:
    """The repository's address and the headers to ask it with."""
    try:
        from huggingface_hub import hf_hub_url  # type: ignore[import-not-found, unused-ignore]
        from huggingface_hub.utils import (  # type: ignore[import-not-found, unused-ignore]
            HFValidationError,
            build_hf_headers,
        )
    except ImportError:
        raise ModelError("huggingface_hub", "is not installed: it is needed to read from the Hub") from None
    try:
        address = str(hf_hub_url(repo, SINGLE, revision=revision, endpoint=endpoint))
    except (HFValidationError, ValueError):
        raise ModelError("repo", f"{show(repo)} is not the name of a repository") from None
    return address.removesuffix(SINGLE), cast("Mapping[str, str]", build_hf_headers(token=token))


def read_weights_from_url(folder_url: str, *, headers: Mapping[str, str] | None = None) -> Weights:
    """The weights of the safetensors files under this address: its index's shards, else `model.safetensors`.

    `headers` go to this host alone, not to one it redirects to. Raises ModelError naming the address and the field.
    """
    scheme = folder_url.partition("://")[0] if isinstance(folder_url, str) else ""
    if scheme not in ("http", "https"):
        raise ModelError("url", f"{show(folder_url)} is not an http address")
    base = folder_url.rstrip("/") + "/"
    sent = dict(headers or {})
    found = _get(base + INDEX, sent, 0, LARGEST_INDEX_BYTES + 1)
    if found is None:
        names, listed = [SINGLE], {}
    else:
        text, _ = found
        if len(text) > LARGEST_INDEX_BYTES:
            raise ModelError("index", f"is larger than {LARGEST_INDEX_BYTES} bytes", base + INDEX)
        listed = parse_index(text, base + INDEX)
        names = sorted(set(listed.values()))
    if len(names) > _MOST_SHARDS:
        raise ModelError("weight_map", f"names {len(names)} files, more than {_MOST_SHARDS}", base + INDEX)
    return gather((name, base + name, _header(base + name, sent)) for name in names).finish(listed, base + INDEX)


def _header(address: str, headers: Mapping[str, str]) -> list[Tensor]:
    found = _get(address, headers, 0, _FIRST_BYTES)
    if found is None:
        raise ModelError("weights", "the shard is missing", address)
    first, size = found

    def read(offset: int, length: int) -> bytes:
        if offset + length <= len(first) or len(first) >= size:
            return first[offset : offset + length]
        more = _get(address, headers, offset, length)
        return b"" if more is None else more[0]

    return parse_header(read, size, address)


def _get(address: str, headers: Mapping[str, str], offset: int, length: int) -> tuple[bytes, int] | None:
    """At most `length` bytes from `offset`, and the whole file's size; None where there is no such file."""
    from urllib.error import HTTPError, URLError
    from urllib.parse import quote
    from urllib.request import Request, urlopen

    request = Request(quote(address, safe=":/%?=&@[]"), headers={"Range": f"bytes={offset}-{offset + length - 1}"})  # noqa: S310
    for name, value in headers.items():
        # Credentials must not follow a redirect to another host.
        request.add_unredirected_header(name, value)
    try:
        with urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            body = cast("IO[bytes]", answer)
            if answer.status == 206:
                return body.read(length), _whole_size(answer.headers.get("Content-Range"), address)
            # The server ignores ranges: its file is taken from the start, no more of it than was asked for.
            if offset:
                raise ModelError("range", "the server does not answer ranged requests", address)
            size = answer.headers.get("Content-Length")
            content = body.read(length)
            return content, int(size) if size is not None and size.isdecimal() else len(content)
    except HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise ModelError("weights", f"the server answered {error.code}", address) from None
    except (URLError, OSError, ValueError) as error:
        raise ModelError("weights", f"cannot be fetched: {type(error).__name__}", address) from None


def _whole_size(content_range: str | None, address: str) -> int:
    size = (content_range or "").rpartition("/")[2]
    if not size.isdecimal() or len(size) > 18:
        raise ModelError("Content-Range", f"{show(content_range)} does not end in a size", address)
    return int(size)
