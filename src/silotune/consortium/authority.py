"""A consortium's certificate authority, and the certificate by which members know its server (X.509, RFC 5280)."""

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

YEARS_OF_CA, DAYS_OF_SERVER = 10, 397
"""How long they hold. Members need no new file when the server's certificate is renewed, and one for a new CA."""
EARLIER = timedelta(days=1)
"""By how much they hold already: a member's clock may be behind."""

Key = ec.EllipticCurvePrivateKey


def draw_key() -> Key:
    """A new private key on P-384, the curve that Flower takes for nodes too."""
    return ec.generate_private_key(ec.SECP384R1())


def pem_of(key: Key) -> bytes:
    """A private key as PEM, without a password: who may read the file is what protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as PEM, as Flower registers nodes by it."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def ca_certificate(name: str, key: Key) -> bytes:
    """The certificate (PEM) of a CA that signs servers and nothing else below it."""
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    subject = _named(f"silotune consortium {name}")
    builder = _builder(subject, subject, key.public_key(), 365 * YEARS_OF_CA)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(usage, critical=True).sign(key, hashes.SHA384()).public_bytes(
        serialization.Encoding.PEM
    )  # fmt: skip


def server_certificate(host: str, key: Key, ca: bytes, ca_key: bytes, days: int = DAYS_OF_SERVER) -> bytes:
    """The certificate (PEM) of the consortium's server, for its host and for this machine's own programs.

    Args:
        host: name or address by which members reach it.
        key: the server's.
        ca: the CA's certificate, PEM.
        ca_key: the CA's private key, PEM.
        days: for which it holds.
    """
    issuer = x509.load_pem_x509_certificate(ca)
    signer = serialization.load_pem_private_key(ca_key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    names = [_alternative(name) for name in dict.fromkeys((host, "localhost", "127.0.0.1"))]
    builder = _builder(_named(host[:64]), issuer.subject, key.public_key(), days)
    for extension in (
        x509.SubjectAlternativeName(names),
        x509.BasicConstraints(ca=False, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ):
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), now - EARLIER,
                                   now + timedelta(days=days))  # fmt: skip


def _named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
