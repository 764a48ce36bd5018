"""Certificate authorities, and what they issue: good, expired, and as old companies made them."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def served(authority: trustme.CA, *names: str, expired: bool = False) -> ssl.SSLContext:
    """A server's context with a certificate for these names or addresses."""
    past = datetime.now(UTC) - timedelta(days=1)
    issued = authority.issue_cert(*names, not_after=past) if expired else authority.issue_cert(*names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


def of_an_old_company(directory: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """(CA file, a server's context): no keyUsage, no key identifiers, as many inspecting proxies still have.

    RFC 5280, sections 4.2.1.1 to 4.2.1.3, wants them; OpenSSL asks for them with X509_V_FLAG_X509_STRICT,
    which Python 3.13 made a default of ``ssl.create_default_context``.
    """
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old Company Root")])
    key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    is_ca = x509.BasicConstraints(ca=True, path_length=None)
    root = _certificate(issuer, issuer, key.public_key(), ((is_ca, True),)).sign(key, hashes.SHA256())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    called = x509.SubjectAlternativeName([_name(name) for name in names])
    leaf = _certificate(issuer, subject, own.public_key(), ((called, False),)).sign(key, hashes.SHA256())
    authority, chain, private = directory / "ca.pem", directory / "server.pem", directory / "key.pem"
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    return authority, context


def _certificate(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
