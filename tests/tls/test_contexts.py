"""`fastpdu.tls`: what the contexts allow, and that a wrong argument is named."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from helpers.pem import SECRET, Pem

import fastpdu
from fastpdu.tls import PROFILES, KernelTls, client_context, kernel_tls, server_context


def shake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost"
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Do a handshake and an exchange over two sockets; raises the error of the client, else that of the server."""
    near, far = socket.socketpair()
    near.settimeout(20)
    far.settimeout(20)
    made: list[ssl.SSLSocket] = []
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            wrapped = server.wrap_socket(far, server_side=True)
            made.append(wrapped)
            wrapped.sendall(wrapped.recv(4))
        except OSError as error:
            failures.append(error)
            with suppress(OSError):
                far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wrapped = client.wrap_socket(near, server_hostname=name)
        try:
            # In TLS 1.3 the client hears only afterwards that its certificate is refused
            wrapped.sendall(b"ping")
            assert wrapped.recv(4) == b"ping"
        except BaseException:
            wrapped.close()
            raise
    finally:
        near.close()
        thread.join(20)
    if failures:
        raise failures[0]
    return wrapped, made[0]


def close(*sockets: ssl.SSLSocket) -> None:
    for sock in sockets:
        sock.close()


# What is allowed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_allows_what_it_should(pem: Pem, profile: Any) -> None:
    for context in (
        client_context(pem.ca, profile=profile),
        server_context(pem.certificate, pem.key, profile=profile),
    ):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.maximum_version in (
            ssl.TLSVersion.MAXIMUM_SUPPORTED,
            ssl.TLSVersion.TLSv1_3,
        )
        suites = {entry["name"]: entry for entry in context.get_ciphers()}
        old = [name for name, entry in suites.items() if entry["protocol"] != "TLSv1.3"]
        # The four of RFC 9325, 4.2
        assert set(old) >= {
            f"ECDHE-{kind}-AES{bits}"
            for kind in ("RSA", "ECDSA")
            for bits in ("128-GCM-SHA256", "256-GCM-SHA384")
        }
        assert all(name.startswith("ECDHE-") and suites[name]["aead"] for name in old)
        assert any("CHACHA20" in name for name in old) == (profile == "bcp195-modified")
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshake(pem: Pem, profile: Any, version: ssl.TLSVersion) -> None:
    client = client_context(pem.ca, profile=profile)
    client.maximum_version = client.minimum_version = version
    ends = shake(client, server_context(pem.certificate, pem.key, profile=profile))
    close(*ends)


def test_old_version_is_refused(pem: Pem) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(pem.ca)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):
        shake(old, server_context(pem.certificate, pem.key))


def test_suite_without_forward_secrecy_is_refused(pem: Pem) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(pem.ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("kRSA:@SECLEVEL=0")
    with pytest.raises(OSError):
        shake(old, server_context(pem.certificate, pem.key))


def test_weak_key_is_refused(pem: Pem, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    weak = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    ca = x509.load_pem_x509_certificate(pem.ca.read_bytes())
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(weak.public_key())
        .serial_number(1)
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_after_utc)
        .sign(weak, hashes.SHA256())
    )
    path = tmp_path / "weak.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + weak.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(ValueError, match=r"certificate: .*weak\.pem.*cannot be used: .*(?i:small)"):
        server_context(path)


# Who is trusted -------------------------------------------------------------------------------------------------


def test_the_name_of_the_host_is_checked(pem: Pem) -> None:
    server = server_context(pem.certificate, pem.key)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'pacs\.example'"):
        shake(client_context(pem.ca), server, "pacs.example")
    close(*shake(client_context(pem.ca, check_hostname=False), server, "pacs.example"))
    close(*shake(client_context(pem.ca), server, "127.0.0.1"))


def test_a_stranger_is_not_trusted(pem: Pem) -> None:
    server = server_context(pem.certificate, pem.key)
    for client in (
        client_context(pem.other_ca),
        client_context(pem.other_ca, check_hostname=False),
        client_context(),
    ):
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            shake(client, server)
    close(*shake(client_context(verify=False), server))


def test_the_certificate_of_the_peer_itself_can_be_trusted(pem: Pem) -> None:
    server = server_context(pem.certificate, pem.key)
    alone = pem.directory / "alone.pem"
    text = pem.certificate.read_text()
    end = "-----END CERTIFICATE-----\n"
    alone.write_text(text.partition(end)[0] + end)
    close(*shake(client_context(alone), server))
    other, other_key = pem.issue("another", "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(client_context(alone), server_context(other, other_key))


def test_a_directory_of_cas(pem: Pem, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^ca: the directory .* openssl rehash"):
        client_context(tmp_path)
    name = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(pem.ca)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if not name:
        pytest.skip("needs the openssl program")
    (tmp_path / f"{name}.0").write_bytes(pem.ca.read_bytes())
    server = server_context(pem.certificate, pem.key)
    close(*shake(client_context(tmp_path), server))
    close(*shake(client_context(os.fspath(tmp_path)), server))


def test_mutual(pem: Pem) -> None:
    client = client_context(pem.ca, pem.client, pem.client_key)
    nobody = client_context(pem.ca)
    stranger = client_context(pem.ca, *pem.issue("stranger", "x@example.org", ca=pem.stranger))
    required = server_context(pem.certificate, pem.key, client_ca=pem.ca)
    optional = server_context(pem.certificate, pem.key, client_ca=pem.ca, client_required=False)
    for server in (required, optional):
        near, far = shake(client, server)
        certificate = far.getpeercert()
        assert certificate
        assert ("email", "client@example.org") in certificate["subjectAltName"]
        close(near, far)
        with pytest.raises(OSError):
            shake(stranger, server)
    with pytest.raises(OSError):
        shake(nobody, required)
    close(*shake(nobody, optional))


# Keys and passwords ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password", [SECRET, SECRET.encode(), lambda: SECRET, lambda: SECRET.encode()]
)
def test_encrypted_key(pem: Pem, password: Any) -> None:
    server = server_context(pem.certificate, pem.locked, password=password)
    close(*shake(client_context(pem.ca), server))
    client = client_context(pem.ca, pem.certificate, pem.locked, password=password)
    server = server_context(pem.certificate, pem.key, client_ca=pem.ca)
    close(*shake(client, server))


def test_the_password_is_not_asked_for_without_need(pem: Pem) -> None:
    def never() -> str:
        raise AssertionError("the key is not encrypted")

    server_context(pem.certificate, pem.key, password=never)


def test_an_error_of_the_password_function_is_its_own(pem: Pem) -> None:
    def fails() -> str:
        raise KeyError("no such secret")

    with pytest.raises(KeyError, match="no such secret"):
        server_context(pem.certificate, pem.locked, password=fails)
    with pytest.raises(TypeError, match="password must return a str or bytes, not a int"):
        server_context(pem.certificate, pem.locked, password=lambda: 5)  # type: ignore


def test_nobody_is_asked_on_the_terminal(pem: Pem) -> None:
    """OpenSSL would, and the program would wait."""
    code = (
        "import fastpdu.tls, sys\n"
        "try: fastpdu.tls.server_context(*sys.argv[1:])\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pem.certificate), str(pem.locked)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("password: the key in")
    assert done.stderr == ""


def test_key_and_certificate_in_one_file(pem: Pem) -> None:
    close(*shake(client_context(pem.ca), server_context(pem.both)))
    close(*shake(client_context(pem.ca), server_context(str(pem.both))))


# Wrong arguments ------------------------------------------------------------------------------------------------

Make = Callable[[Pem], object]

WRONG: dict[str, tuple[Make, type[Exception], str]] = {
    "ca missing": (
        lambda p: client_context(p.directory / "no.pem"),
        FileNotFoundError,
        "ca: No such file.*no.pem",
    ),
    "ca no PEM": (
        lambda p: client_context(p.text),
        ValueError,
        "^ca: no PEM certificate in .*text.pem",
    ),
    "ca number": (lambda p: client_context(5), TypeError, "^ca must be a path"),  # type: ignore
    "ca bytes": (lambda p: client_context(b"x"), TypeError, "^ca must be a path"),  # type: ignore
    "ca empty": (lambda p: client_context(""), ValueError, "^ca must not be an empty path"),
    "ca broken": (
        lambda p: client_context(_broken(p)),
        ValueError,
        "^ca: the certificates in .* cannot be read",
    ),
    "ca and no verify": (
        lambda p: client_context(p.ca, verify=False),
        ValueError,
        "^ca has no meaning with verify=False",
    ),
    "key alone": (
        lambda p: client_context(key=p.key),
        ValueError,
        "^key was given, but no certificate",
    ),
    "password alone": (
        lambda p: client_context(password="x"),
        ValueError,
        "^password was given, but no certificate",
    ),
    "certificate missing": (
        lambda p: server_context(p.directory / "no.pem"),
        FileNotFoundError,
        "certificate: No such file",
    ),
    "certificate a directory": (
        lambda p: server_context(p.directory),
        OSError,
        "certificate: ",
    ),
    "certificate None": (
        lambda p: server_context(None),  # type: ignore
        TypeError,
        "^certificate must be a path, not a NoneType",
    ),
    "certificate no PEM": (
        lambda p: server_context(p.text, p.key),
        ValueError,
        "^certificate: no PEM certificate in .*openssl x509 -inform der",
    ),
    "key missing": (
        lambda p: server_context(p.certificate, p.directory / "no.pem"),
        FileNotFoundError,
        "key: No such file",
    ),
    "key not in the file": (
        lambda p: server_context(p.certificate),
        ValueError,
        "^key: no PEM private key in .*server.pem; give the file that has it",
    ),
    "key no PEM": (
        lambda p: server_context(p.certificate, p.text),
        ValueError,
        "^key: no PEM private key in .*text.pem",
    ),
    "key of another": (
        lambda p: server_context(p.certificate, p.client_key),
        ValueError,
        "does not belong to the certificate in .*server.pem",
    ),
    "no password": (
        lambda p: server_context(p.certificate, p.locked),
        ValueError,
        "^password: the key in .*locked.pem is encrypted, and no password was given",
    ),
    "wrong password": (
        lambda p: server_context(p.certificate, p.locked, password="wrong"),
        ValueError,
        "^password: it does not open the key in .*locked.pem",
    ),
    "empty password": (
        lambda p: server_context(p.certificate, p.locked, password=""),
        ValueError,
        "^password: it does not open the key in .*locked.pem",
    ),
    "password a number": (
        lambda p: server_context(p.certificate, p.locked, password=5),  # type: ignore
        TypeError,
        "^password must be a str, bytes or a function, not a int",
    ),
    "client_ca missing": (
        lambda p: server_context(p.both, client_ca=p.directory / "no.pem"),
        FileNotFoundError,
        "client_ca: No such file",
    ),
    "client_ca no PEM": (
        lambda p: server_context(p.both, client_ca=p.text),
        ValueError,
        "^client_ca: no PEM certificate",
    ),
    "client_required alone": (
        lambda p: server_context(p.both, client_required=False),
        ValueError,
        "^client_required=False has no meaning without client_ca",
    ),
    "profile": (
        lambda p: client_context(profile="aes"),  # type: ignore
        ValueError,
        "^profile must be one of bcp195, bcp195-modified, not 'aes'",
    ),
    "verify": (
        lambda p: client_context(verify=0),  # type: ignore
        TypeError,
        "^verify must be True or False",
    ),
    "check_hostname": (
        lambda p: client_context(check_hostname="no"),  # type: ignore
        TypeError,
        "^check_hostname must be True or False",
    ),
    "client_required": (
        lambda p: server_context(p.both, client_ca=p.ca, client_required=1),  # type: ignore
        TypeError,
        "^client_required must be True or False",
    ),
    "ktls": (
        lambda p: client_context(ktls="yes"),  # type: ignore
        TypeError,
        "^ktls must be True or False",
    ),
}


def _broken(pem: Pem) -> Path:
    path = pem.directory / "broken.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return path


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_named(pem: Pem, case: str) -> None:
    make, kind, text = WRONG[case]
    with pytest.raises(kind, match=text):
        make(pem)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root"
)
def test_key_that_may_not_be_read(pem: Pem, tmp_path: Path) -> None:
    path = tmp_path / "forbidden.pem"
    path.write_bytes(pem.key.read_bytes())
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"key: .*forbidden\.pem"):
        server_context(pem.certificate, path)


# kTLS -----------------------------------------------------------------------------------------------------------


def test_ktls_where_python_offers_it(pem: Pem) -> None:
    option = getattr(ssl, "OP_ENABLE_KTLS", None)
    if option is None:
        with pytest.raises(ValueError, match=r"ktls=True needs Python 3\.12"):
            client_context(pem.ca, ktls=True)
        client_context(pem.ca, ktls=False)
        return
    for wanted in (None, True, False):
        context = server_context(pem.both, ktls=wanted)
        assert bool(context.options & option) is (wanted is not False)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_the_kernel_does_is_told(pem: Pem, version: ssl.TLSVersion) -> None:
    client = client_context(pem.ca, ktls=False)
    client.maximum_version = version
    near, far = shake(client, server_context(pem.both, ktls=False))
    # A pair of Unix sockets, and switched off: it does nothing
    assert kernel_tls(far) == KernelTls(False, False)
    close(near, far)
    with socket.socket() as plain:
        assert kernel_tls(plain) == KernelTls(sends=False, receives=False)


def test_public_name() -> None:
    assert fastpdu.tls.client_context is client_context
    assert "tls" in fastpdu.__all__
