"""Which certificate authorities are believed."""

from __future__ import annotations

import os
import re
import ssl
from typing import Final

from nimpull.core.names import display
from nimpull.errors import TlsError

#: Where Debian, Ubuntu and the distroless images keep it, and where the operator mounts a corporate bundle.
SYSTEM_STORE: Final = "/etc/ssl/certs/ca-certificates.crt"
#: What "openssl rehash" names the files of a directory, so that it need not be read as a whole.
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.\d+")


def client_context(ca_files: tuple[str, ...], system_store: str = SYSTEM_STORE) -> ssl.SSLContext:
    """TLS 1.2 or later, always verifying; trusts the system store and ``ca_files``, which may be directories:
    hashed ones, or of files called ``.crt`` or ``.pem`` as a ConfigMap mounts them.

    certifi's list is used only where neither gave a certificate (an image without ca-certificates).
    Raises TlsError naming a file that cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 made RFC 5280 strictness a default; corporate CAs without keyUsage fail it.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    stores = (system_store, *ca_files) if os.path.isfile(system_store) else ca_files
    # each once: several variables often name one file, and reading it takes 25 ms
    hashed = [_load(context, path) for path in {os.path.realpath(path): path for path in stores}.values()]
    if not any(hashed) and not context.cert_store_stats()["x509_ca"]:
        import certifi

        _load(context, certifi.where())
    return context


def _load(context: ssl.SSLContext, path: str) -> bool:
    """True for a hashed directory: it is searched later, and shows no certificate until then."""
    try:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        if any(map(_HASHED.fullmatch, names)):
            context.load_verify_locations(capath=path)
            return True
        if not os.path.isdir(path):
            context.load_verify_locations(cafile=path)
        for name in names:
            if name.endswith((".crt", ".pem")) and os.path.isfile(file := os.path.join(path, name)):
                _load(context, file)
        return False
    except (OSError, ssl.SSLError) as error:
        raise TlsError(
            f"cannot read the CA bundle “{display(path, 200)}”: {display(error.strerror or error, 120)}",
            hint="Check SSL_CERT_FILE, SSL_CERT_DIR and REQUESTS_CA_BUNDLE, or the ConfigMap named by "
            "proxy.certConfigMap: the file must hold certificates in PEM form.",
        ) from error
