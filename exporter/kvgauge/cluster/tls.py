"""The serving side's TLS: a certificate that may change while it serves, and one CA whose client certificates count.

Every connection takes the context that is current then, whole, so that a new certificate serves at once and a CA that
was taken away is trusted no more, not even in a session that is resumed. A client may come without a certificate; one
of another CA fails the handshake.
"""

import asyncio
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kvgauge.cluster.settings import ServingSettings
from kvgauge.complaints import InputError
from kvgauge.configuring import bounded_file
from kvgauge.logs import logger

if TYPE_CHECKING:
    from cryptography import x509

LOOK_SECONDS = 10.0
"""Between two looks whether the files have changed."""
MAX_PEM_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, PEM."""

    chain: bytes
    key: bytes


class Context(ssl.SSLContext):
    """Of one certificate and one CA."""

    client_ca: str | None = None


class Switching(ssl.SSLContext):
    """Given to a server, it hands each new connection to the context that is current then. Swapping contexts while the
    client greets would not do: whether certificates are asked for, and old sessions, stay with the first context."""

    current: Context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def distrusts(self, connection: ssl.SSLObject) -> bool:
        """Whether another CA was trusted when that connection was made."""
        return isinstance(connection.context, Context) and connection.context.client_ca != self.current.client_ca


class ServingTls:
    """The context to serve with. `client_ca` is the only CA whose client certificates are accepted, PEM."""

    def __init__(self, pair: Pair, client_ca: str | None = None) -> None:
        self.context = Switching(ssl.PROTOCOL_TLS_SERVER)
        self.context.current = _context(pair, client_ca)
        self._pair = pair

    @property
    def pair(self) -> Pair:
        return self._pair

    def use_pair(self, pair: Pair) -> None:
        """Serves with another certificate from now on. Raises InputError, and goes on with the old one."""
        self.context.current = _context(pair, self.context.current.client_ca)
        self._pair = pair

    def use_client_ca(self, client_ca: str | None) -> None:
        """Trusts this CA alone from now on; none: client certificates are not asked for. Connections made before end
        with their next request. Raises InputError, and goes on with the old one."""
        if client_ca != self.context.current.client_ca:
            self.context.current = _context(self._pair, client_ca)

    async def follow_files(self, cert: Path, key: Path, *, look_seconds: float = LOOK_SECONDS) -> NoReturn:
        """Takes what the files hold whenever that changes, until cancelled. A mounted Secret changes by swapped links,
        so contents are compared."""
        complaint = ""
        while True:
            await asyncio.sleep(look_seconds)
            try:
                found = read_pair(cert, key)
                if found != self._pair:
                    self.use_pair(found)
                    logger.info("serving with the new certificate")
                complaint = ""
            except InputError as error:
                # Often half of the pair is new and the other half not yet.
                if str(error) != complaint:
                    logger.warning("the certificate stays as it was: %s", error)
                complaint = str(error)


def read_pair(cert: Path, key: Path) -> Pair:
    """The pair in two PEM files. Raises InputError that names the field."""
    return Pair(bounded_file("tls_cert", cert, MAX_PEM_BYTES), bounded_file("tls_key", key, MAX_PEM_BYTES))


def serving_tls(settings: ServingSettings) -> ServingTls:
    """The certificate that a role's settings name, or one that is made. Raises InputError."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return ServingTls(read_pair(Path(settings.tls_cert), Path(settings.tls_key)))
    if not settings.self_signed or settings.tls_cert is not None or settings.tls_key is not None:
        missing = "tls_cert" if settings.tls_cert is None else "tls_key"
        raise InputError(f"{missing}: missing; give tls_cert and tls_key, or --self-signed, which makes one for a demo")
    logger.warning("serving with a certificate that was made just now and that nobody knows")
    return ServingTls(self_signed(["localhost", "127.0.0.1", "::1"])[0])


def following_files(settings: ServingSettings, tls: ServingTls) -> list[Coroutine[Any, Any, NoReturn]]:
    """What keeps the certificate in step with the files that the settings name; nothing where it was made."""
    if settings.tls_cert is None or settings.tls_key is None:
        return []
    return [tls.follow_files(Path(settings.tls_cert), Path(settings.tls_key))]


def _context(pair: Pair, client_ca: str | None) -> Context:
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(context, pair)
    if client_ca is not None:
        context.client_ca = client_ca
        context.verify_mode = ssl.CERT_OPTIONAL
        # Trusted is what the file holds, be it signed by yet another CA: so the API server itself reads it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=client_ca)
        except (ssl.SSLError, ValueError, TypeError) as error:
            raise InputError(f"client CA: not a PEM certificate ({type(error).__name__})") from None
    return context


def _load_pair(context: ssl.SSLContext, pair: Pair) -> None:
    # The ssl module takes pairs from files only; these are readable by us alone and gone at once.
    try:
        with tempfile.TemporaryDirectory(prefix="kvgauge-tls-") as folder:
            chain, key = Path(folder) / "chain", Path(folder) / "key"
            for path, content in ((chain, pair.chain), (key, pair.key)):
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
            # An empty password keeps OpenSSL from asking at the terminal.
            context.load_cert_chain(chain, key, password="")
    except ssl.SSLError as error:
        reason = error.reason or "not PEM"
        raise InputError(f"tls_cert, tls_key: no certificate with its key ({reason})") from None
    except OSError as error:
        raise InputError(f"tls_cert, tls_key: no temporary file to load them from ({error.strerror})") from None


def self_signed(names: list[str], *, days: int = 365) -> tuple[Pair, str]:
    """A certificate for these DNS names and IP addresses, and the PEM of the CA that was made for it, whose key is
    thrown away. For demos."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = datetime.now(UTC)
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kvgauge demo CA")])
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def begun(subject: x509.Name, of: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(of.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    ca = (
        begun(ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        begun(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kvgauge")]), key)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    written = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(leaf.public_bytes(pem), written), ca.public_bytes(pem).decode()


def _general_name(name: str) -> "x509.GeneralName":
    # Only who makes a certificate pays for this import.
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
