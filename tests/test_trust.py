"""Which CAs are believed, and from where: a company's own, an old one, a directory of them."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from threading import Event

import pytest
import trustme

from nimpull.core.names import Url
from nimpull.errors import TlsError
from nimpull.settings import load
from nimpull.transport import Transport, TransportPolicy
from nimpull.transport.trust import client_context
from tests.certificates import of_an_old_company, served
from tests.clocks import StepClock
from tests.servers import Peer, ScriptedServer, Seen


def ok(seen: Seen, peer: Peer) -> None:
    peer.reply(200, b"{}")


def asked(url: Url, **environ: str) -> bytes:
    settings = load(environ)
    policy = TransportPolicy(ca_files=settings.ca_files, ca_directories=settings.ca_directories)
    with Transport(policy, clock=StepClock(), cancel=Event(), emit=lambda event: None) as transport:
        return transport.request("GET", url).body


def test_f27_an_old_company_s_ca_is_believed_where_python_3_13_would_not(tmp_path: Path) -> None:
    authority, context = of_an_old_company(tmp_path, "127.0.0.1")
    with ScriptedServer(ok, tls=context) as server:
        strict = ssl.create_default_context(cafile=authority)
        strict.verify_flags |= ssl.VERIFY_X509_STRICT  # of 3.13's own default
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            socket.create_connection(("127.0.0.1", server.port)) as plain,
        ):
            strict.wrap_socket(plain, server_hostname="127.0.0.1")
        assert asked(server.url(), SSL_CERT_FILE=str(authority)) == b"{}"
        with pytest.raises(TlsError, match="not trusted"):
            asked(server.url())


def test_f27_each_variable_adds_to_what_is_believed(tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "corp.pem"
    authority.cert_pem.write_to_path(file)
    with ScriptedServer(ok, tls=served(authority, "127.0.0.1")) as server:
        for name, value in (
            ("SSL_CERT_FILE", file),
            ("REQUESTS_CA_BUNDLE", file),
            ("SSL_CERT_DIR", f"/nonexistent:{tmp_path}"),
        ):
            assert asked(server.url(), **{name: str(value)}) == b"{}", name


def test_f27_a_directory_holds_files_as_a_configmap_mounts_them_or_hashed_ones(tmp_path: Path) -> None:
    """Of a ConfigMap: PEM files under any name, behind links; without the names that OpenSSL looks for."""
    (tmp_path / "..data").mkdir()
    trustme.CA().cert_pem.write_to_path(tmp_path / "..data/corp.crt")
    (tmp_path / "corp.crt").symlink_to("..data/corp.crt")
    (tmp_path / "README").write_text("no certificate, and not asked for one")
    missing = str(tmp_path / "none")
    assert len(client_context((str(tmp_path),), missing).get_ca_certs()) == 1
    (tmp_path / "bad.pem").write_text("no certificate, but called one")
    with pytest.raises(TlsError, match=r"bad\.pem") as caught:
        client_context((str(tmp_path),), missing)
    assert "SSL_CERT_DIR" in caught.value.hint
