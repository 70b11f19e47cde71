"""Certificate authorities and certificates made for a test, in PEM."""

import functools
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvgauge.cluster.tls import Pair

_PEM = serialization.Encoding.PEM
Key = ec.EllipticCurvePrivateKey


def _name(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])


class Authority:
    """A CA, of its own or `below` another."""

    def __init__(self, name: str, below: "Authority | None" = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        signer = below or self
        self._certificate = (
            _begun(self.name, signer.name, self.key, timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(_PEM).decode()

    def client(self, *names: str, valid: timedelta = timedelta(days=1), server_only: bool = False) -> Pair:
        """`names`: common names. `valid`: until then from now, maybe before."""
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server_only else ExtendedKeyUsageOID.CLIENT_AUTH
        return self._pair(_name(*names), usage, valid)

    def server(self, name: str = "server") -> Pair:
        """For localhost and 127.0.0.1."""
        return self._pair(_name(name), ExtendedKeyUsageOID.SERVER_AUTH, timedelta(days=1))

    def _pair(self, name: x509.Name, usage: x509.ObjectIdentifier, valid: timedelta) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        certificate = (
            _begun(name, self.name, key, valid)
            .add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Pair(certificate.public_bytes(_PEM), _private(key))


def self_made(name: str = "kvgauge") -> Pair:
    """For 127.0.0.1, signed by itself: whoever trusts it needs no other."""
    key, own = ec.generate_private_key(ec.SECP256R1()), _name(name)
    certificate = (
        _begun(own, own, key, timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(_PEM), _private(key))


def _begun(subject: x509.Name, issuer: x509.Name, key: Key, valid: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + valid)
    )


def _private(key: Key) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@functools.cache
def authority(name: str) -> Authority:
    """One and the same for each name."""
    return Authority(name)


def client_context(pair: Pair | None = None, trusts: str | None = None) -> ssl.SSLContext:
    """Of a client with that certificate, or none; without `trusts` it trusts every server."""
    # The system's own CAs, which take long to load, are of no use here.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusts is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=trusts)
    if pair is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pair.pem"
            path.write_bytes(pair.chain + pair.key)
            context.load_cert_chain(path)
    return context
