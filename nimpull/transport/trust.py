"""Which certificate authorities are believed: decided once, for Python's TLS and for libcurl's."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

from nimpull.core.names import display
from nimpull.errors import TlsError

#: Where the system's store is, the first that is there: Debian, Ubuntu, distroless and what the operator
#: mounts over /etc/ssl; Fedora, RHEL, UBI; openSUSE; Alpine (the list of Go's crypto/x509, root_linux.go);
#: last where this Python's OpenSSL looks, as a Python with its own OpenSSL has a list of its own there.
SYSTEM_STORES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    ssl.get_default_verify_paths().openssl_cafile,
)
#: Where there is no such file: directories of them.
SYSTEM_DIRECTORIES: Final = ("/etc/ssl/certs", "/etc/pki/tls/certs")
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
#: A ConfigMap's names, and those that "openssl rehash" gives.
_NAMED: Final = re.compile(r".*\.(crt|pem)|[0-9a-f]{8}\.\d+")


class Authorities:
    """The certificates that are believed, as one PEM bundle.

    libcurl takes it as a path (``CAINFO``): it keeps the store that it made of a file for the connections
    that follow, but not of a blob, where each handshake costs 5 ms of CPU more.
    """

    def __init__(self, pem: bytes) -> None:
        self.pem = pem

    @cached_property
    def path(self) -> str:
        """A file with ``pem`` that needs no room on a disk; this process and its threads can read it."""
        self._memory = os.memfd_create("ca-bundle")
        with open(self._memory, "wb", closefd=False) as bundle:
            bundle.write(self.pem)
        return f"/proc/self/fd/{self._memory}"

    def context(self) -> ssl.SSLContext:
        """For Python: TLS 1.2 or later, always verifying. Raises TlsError for a certificate that is none."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13 made RFC 5280 strictness a default; corporate CAs without keyUsage fail it.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_verify_locations(cadata=self.pem.decode("ascii"))
        except ssl.SSLError as error:
            raise _unreadable("the system's store", error) from error
        return context


def authorities(
    ca_files: Sequence[str] = (),
    ca_directories: Iterable[str] = (),
    system: Sequence[str] = (*SYSTEM_STORES, *SYSTEM_DIRECTORIES),
) -> Authorities:
    """The system's store with ``ca_files`` and those of ``ca_directories`` that are there.

    Each may be a directory: of files called ``.crt`` or ``.pem``, as a ConfigMap mounts them, or with the
    names that OpenSSL gives. certifi's list is used only where neither has a certificate (an image without
    ca-certificates). Raises TlsError naming a file that cannot be read.
    """
    store = next((path for path in system if os.path.isfile(path)), None)
    stores = (store,) if store else tuple(filter(os.path.isdir, system))
    found = dict.fromkeys(block for path in stores for file in _files(path) for block in _blocks(file))
    for path in (*ca_files, *filter(os.path.isdir, ca_directories)):
        # several variables often name the system's own file
        if os.path.realpath(path) not in map(os.path.realpath, stores):
            found |= dict.fromkeys(block for file in _files(path) for block in _checked(file))
    if not found:
        import certifi

        found = dict.fromkeys(_blocks(certifi.where()))
    return Authorities(b"\n".join(found) + b"\n")


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for name in sorted(os.listdir(path)):
        # links to the CAs of a company dangle where the operator copied them out of its init container
        if _NAMED.fullmatch(name) and os.path.isfile(file := os.path.join(path, name)):
            yield file


def _blocks(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return _CERTIFICATE.findall(file.read())
    except OSError as error:
        raise _unreadable(f"“{display(path, 200)}”", error) from error


def _checked(path: str) -> list[bytes]:
    """Of a file that somebody named: it must hold certificates, and nothing that only looks like one."""
    blocks = _blocks(path)
    try:
        if not blocks:
            raise ssl.SSLError("it holds no certificate in PEM form")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
            cadata=b"\n".join(blocks).decode("ascii")
        )
    except (ssl.SSLError, ValueError) as error:
        raise _unreadable(f"“{display(path, 200)}”", error) from error
    return blocks


def _unreadable(what: str, error: Exception) -> TlsError:
    reason = getattr(error, "strerror", "") or error
    return TlsError(
        f"cannot read the CA bundle {what}: {display(reason, 120)}",
        hint="Check SSL_CERT_FILE, SSL_CERT_DIR and REQUESTS_CA_BUNDLE (NIMCache: or the ConfigMap in "
        "spec.proxy.certConfigMap): the file must hold certificates in PEM form.",
    )
