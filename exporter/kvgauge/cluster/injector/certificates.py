"""The certificate that the webhook serves with: from files, which are replaced while it serves, or made here."""

import asyncio
import datetime
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvgauge.complaints import InputError
from kvgauge.logs import logger

LOOK_SECONDS = 10.0
"""How often the files are looked at. A Secret's volume is updated within a minute or so."""
_VALID_DAYS = 365


class Certificate:
    """An SSL context that follows two files. A pair that does not load leaves the one before in use."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._state()
        self._load()

    def look(self) -> None:
        """Loads the files again if they have changed; connections from then on are made with them."""
        state = self._state()
        if state == self._seen:
            return
        try:
            self._load()
        except InputError as error:
            logger.warning("%s; the certificate before stays", error)
        else:
            logger.info("the certificate was renewed")
        self._seen = state

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def _state(self) -> Sequence[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for path in (self._chain, self._key):
            try:
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_ino))
            except OSError:
                found.append(None)
        return found

    def _load(self) -> None:
        try:
            # Into a fresh one first: a half-loaded pair would be served.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._chain, self._key, password=_no_password)
            self.context.load_cert_chain(self._chain, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            why = error.strerror if not isinstance(error, ssl.SSLError) and isinstance(error, OSError) else None
            raise InputError(
                f"tls_cert: {self._chain} and {self._key}: {why or 'no pair of certificate and key'}"
            ) from None


def _no_password() -> str:
    """An encrypted key would otherwise make OpenSSL ask at the terminal."""
    raise ValueError("the key has a password")


def from_files(chain: str | None, key: str | None) -> Certificate:
    """Raises InputError."""
    if chain is None or key is None:
        raise InputError(f"{'tls_cert' if chain is None else 'tls_key'}: missing; --self-signed makes one for a demo")
    return Certificate(Path(chain), Path(key))


def self_signed(names: Sequence[str] = ("localhost",)) -> Certificate:
    """For demos: nobody else trusts it, and it is gone with the process."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kvgauge-injector")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.TemporaryDirectory() as folder:
        chain, key_file = Path(folder) / "tls.crt", Path(folder) / "tls.key"
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.touch(mode=0o600)
        key_file.write_bytes(private)
        return Certificate(chain, key_file)
