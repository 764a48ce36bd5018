"""Which CAs are believed, and from where: a company's own, an old one, a directory; and what is refused."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event

import pycurl
import pytest
import trustme

from nimpull.core.artifacts import Location
from nimpull.core.names import Url
from nimpull.errors import TlsError
from nimpull.settings import load
from nimpull.transport import HttpApi, Network, TransportPolicy
from nimpull.transport.trust import SYSTEM_STORES, authorities
from tests.certificates import of_an_old_company, served
from tests.clocks import StepClock
from tests.servers import PlainServer, ScriptedServer
from tests.transporting import Rig, get, ok


def asked(url: Url, **environ: str) -> bytes:
    settings = load(environ)
    policy = TransportPolicy(ca_files=settings.ca_files, ca_directories=settings.ca_directories)
    clock = StepClock()
    api = HttpApi(Network(policy, clock), clock=clock, cancel=Event(), emit=lambda event: None)
    with closing(api):
        return api.request("GET", url).body


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
    assert len(authorities((str(tmp_path),), (), (missing,)).context().get_ca_certs()) == 1
    (tmp_path / "bad.pem").write_text("no certificate, but called one")
    with pytest.raises(TlsError, match=r"bad\.pem") as caught:
        authorities((str(tmp_path),), (), (missing,))
    assert "SSL_CERT_DIR" in caught.value.hint


def test_f27_an_unknown_authority_is_refused_once(rig: Callable[..., Rig], ca: trustme.CA) -> None:
    with ScriptedServer(ok, tls=served(ca, "127.0.0.1")) as server:
        one = rig()
        with pytest.raises(TlsError, match="not trusted") as caught:
            one.api.request("GET", server.url())
        assert "proxy.certConfigMap" in caught.value.hint
        assert "SSL_CERT_FILE" in caught.value.hint
        assert one.clock.waits == []


@pytest.mark.parametrize(
    ("issued", "message"),
    [
        (("other.test", False), "another host"),
        (("127.0.0.2", False), "another host"),
        (("127.0.0.1", True), "is expired, or not valid yet"),
    ],
)
def test_f27_wrong_host_and_expired(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, issued: tuple[str, bool], message: str
) -> None:
    name, expired = issued
    tls = served(ca, name, expired=expired)
    with ScriptedServer(ok, tls=tls) as server, pytest.raises(TlsError, match=message):
        rig(ca_files=(bundle,)).api.request("GET", server.url())


def test_f27_plain_http_on_a_tls_port(rig: Callable[..., Rig]) -> None:
    with PlainServer(ok) as server:
        url = Url(server.url().reveal().replace("http:", "https:"))
        with pytest.raises(TlsError, match="no TLS connection"):
            get(rig().network, Location(url))


def test_f27_the_system_store_is_honoured_and_bundles_add_to_it(ca: trustme.CA, tmp_path: Path) -> None:
    store, extra = tmp_path / "store.crt", tmp_path / "extra.pem"
    ca.cert_pem.write_to_path(store)
    trustme.CA(organization_name="another").cert_pem.write_to_path(extra)
    assert len(authorities((), (), (str(store),)).context().get_ca_certs()) == 1
    assert len(authorities((str(extra),), (), (str(store),)).context().get_ca_certs()) == 2


def test_f27_the_system_store_is_found_wherever_a_distribution_has_it(ca: trustme.CA, tmp_path: Path) -> None:
    """The first of the known files; without one, a directory of them, whose dangling links are not read."""
    missing, second, third = (str(tmp_path / name) for name in ("none", "bundle.crt", "other.crt"))
    ca.cert_pem.write_to_path(second)
    for _ in range(2):
        trustme.CA().cert_pem.write_to_path(third, append=True)
    hashed = tmp_path / "certs"
    hashed.mkdir()
    (hashed / "0a1b2c3d.0").symlink_to("../bundle.crt")
    (hashed / "ffffffff.0").symlink_to("/usr/local/share/ca-certificates/gone.crt")
    (hashed / "README").write_text("none")
    for system, count in (((missing, second, third), 1), ((third, second), 2), ((missing, str(hashed)), 1)):
        assert len(authorities((), (), system).context().get_ca_certs()) == count
    for known in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"):
        assert known in SYSTEM_STORES


def test_f27_libcurl_reads_the_same_bundle_as_a_file(ca: trustme.CA, bundle: str) -> None:
    trusted = authorities((bundle,), (), ())
    assert Path(trusted.path).read_bytes() == trusted.pem
    assert ca.cert_pem.bytes().strip() in trusted.pem
    curl = pycurl.Curl()
    with ScriptedServer(ok, tls=served(ca, "127.0.0.1")) as server:
        curl.setopt(pycurl.URL, server.url().reveal())
        curl.setopt(pycurl.CAINFO, trusted.path)
        assert curl.perform_rs() == "{}"
        curl.close()


def test_f27_without_a_system_store_the_bundled_list_is_the_last_resort(
    ca: trustme.CA, bundle: str, tmp_path: Path
) -> None:
    missing = str(tmp_path / "none")
    assert len(authorities((), (), (missing,)).context().get_ca_certs()) > 50
    assert len(authorities((bundle,), (), (missing,)).context().get_ca_certs()) == 1


def test_f27_verification_is_never_off_but_not_pedantic(bundle: str) -> None:
    context = authorities((bundle,)).context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


def test_f27_a_bundle_that_cannot_be_read(rig: Callable[..., Rig], tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("not a certificate")
    for name in ("junk.pem", "missing.pem"):
        with pytest.raises(TlsError, match=name):
            rig(ca_files=(str(tmp_path / name),))
