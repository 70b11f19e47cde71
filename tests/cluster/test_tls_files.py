"""A serving certificate in files, which change while it serves."""

import asyncio
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from kvgauge.cluster.tls import Pair, ServingTls, read_pair
from kvgauge.complaints import InputError
from tests.cluster.waiting import until

from .certificates import authority, client_context
from .serving import served
from .test_tls import named, seen


class Mounted:
    """Files as a mounted Secret has them: links to a folder that is swapped."""

    def __init__(self, root: Path, pair: Pair) -> None:
        self._root = root
        self._count = 0
        self.cert, self.key = root / "tls.crt", root / "tls.key"
        self.swap(pair)
        self.cert.symlink_to("..data/tls.crt")
        self.key.symlink_to("..data/tls.key")

    def swap(self, pair: Pair) -> None:
        self._count += 1
        folder = self._root / f"..{self._count}"
        folder.mkdir()
        (folder / "tls.crt").write_bytes(pair.chain)
        (folder / "tls.key").write_bytes(pair.key)
        link = self._root / "..new"
        link.symlink_to(folder.name)
        link.replace(self._root / "..data")


async def certificate_of(port: int) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context())
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    assert isinstance(found, bytes)
    return found


def binary(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.chain.decode())


@asynccontextmanager
async def following(tls: ServingTls, mounted: Mounted) -> AsyncIterator[None]:
    task = asyncio.create_task(tls.follow_files(mounted.cert, mounted.key, look_seconds=0.005))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()


def test_a_new_pair_in_the_files_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = authority("serving").server("first"), authority("serving").server("second")
    caplog.set_level(logging.INFO, "kvgauge")

    async def run() -> None:
        mounted = Mounted(tmp_path, first)
        tls = ServingTls(read_pair(mounted.cert, mounted.key), authority("front").pem)
        async with served(tls=tls) as server, following(tls, mounted):
            assert await certificate_of(server.port) == binary(first)
            mounted.swap(second)
            await until(lambda: tls.pair == second)
            assert await certificate_of(server.port) == binary(second)
            # The CA of the clients stays.
            assert await seen(server.port, authority("front").client("proxy")) == named("proxy")
            assert await seen(server.port, authority("other").client("proxy")) == "cut"

    asyncio.run(run())
    assert caplog.messages == ["serving with the new certificate"]


@pytest.mark.parametrize("broken", ["half", "garbage", "gone"])
def test_a_broken_pair_changes_nothing_and_is_said_once(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (authority("serving").server(name) for name in ("first", "second", "third"))

    async def run() -> None:
        mounted = Mounted(tmp_path, first)
        tls = ServingTls(first)
        async with served(tls=tls) as server, following(tls, mounted):
            if broken == "half":
                mounted.swap(Pair(second.chain, first.key))
            elif broken == "garbage":
                mounted.swap(Pair(b"\x00garbage", b""))
            else:
                mounted.cert.unlink()
            await until(lambda: bool(caplog.messages))
            # Some more looks at the same files.
            await asyncio.sleep(0.05)
            assert await certificate_of(server.port) == binary(first)
            if broken == "gone":
                mounted.cert.symlink_to("..data/tls.crt")
            mounted.swap(third)
            await until(lambda: tls.pair == third)
            assert await certificate_of(server.port) == binary(third)

    asyncio.run(run())
    [message] = caplog.messages
    assert message.startswith("the certificate stays as it was: tls_cert")
    assert "PRIVATE KEY" not in message


def test_a_pair_that_is_none_is_one_line_that_names_the_settings(tmp_path: Path) -> None:
    first, second = authority("serving").server("first"), authority("serving").server("second")
    keys = second.key, b"x", b"", locked(first)
    for pair in (Pair(b"", b""), Pair(b"", first.key), *(Pair(first.chain, key) for key in keys)):
        with pytest.raises(InputError, match=r"^tls_cert, tls_key: no certificate with its key \(.+\)$") as raised:
            ServingTls(pair)
        assert "\n" not in str(raised.value)
    present = tmp_path / "present"
    present.write_bytes(first.chain)
    with pytest.raises(InputError, match=r"^tls_key: .*absent: No such file"):
        read_pair(present, tmp_path / "absent")
    with pytest.raises(InputError, match=r"^tls_cert: .*: Is a directory"):
        read_pair(tmp_path, present)
    present.write_bytes(b"a" * (1024 * 1024 + 1))
    with pytest.raises(InputError, match=r"^tls_cert: .*: larger than 1048576 bytes"):
        read_pair(present, present)


def test_a_pair_that_cannot_be_loaded_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = authority("serving").server("first"), authority("serving").server("second")
    tls = ServingTls(first)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(InputError, match=r"^tls_cert, tls_key: no temporary file to load them from \(.+\)$"):
        tls.use_pair(second)
    assert tls.pair == first


def locked(pair: Pair) -> bytes:
    """The key under a password."""
    key = load_pem_private_key(pair.key, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
