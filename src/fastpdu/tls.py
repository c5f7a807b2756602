"""TLS contexts as DICOM wants them (PS3.15 B.12 and B.13, which rest on BCP 195: RFC 8996 and RFC 9325).

>>> import fastpdu
>>> context = fastpdu.tls.client_context("ca.pem")
>>> assoc = ae.associate("pacs.example", 2762, tls_args=(context, "pacs.example"))

What is returned is an `ssl.SSLContext` like any other; pynetdicom takes it as well. See docs/tls.md.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = ["PROFILES", "KernelTls", "client_context", "kernel_tls", "server_context"]

Profile: TypeAlias = Literal["bcp195", "bcp195-modified"]
FilePath: TypeAlias = "str | os.PathLike[str]"
Password: TypeAlias = "str | bytes | Callable[[], str | bytes] | None"

_AES = "ECDHE+AESGCM"
_CHACHA = "ECDHE+CHACHA20"

#: What each profile allows for TLS 1.2, in OpenSSL's words; TLS 1.3 has no suite that they would forbid.
#: Level 2 asks for RSA and DH keys of 2048 bits, 224 bits of elliptic curves, and no SHA-1 in certificates.
PROFILES: dict[str, str] = {
    # RFC 9325, 4.2: the four suites that it recommends
    "bcp195": f"{_AES}:@SECLEVEL=2",
    # PS3.15 B.13 allows nothing but its own list, which has ChaCha20 beside them
    "bcp195-modified": f"{_AES}:{_CHACHA}:@SECLEVEL=2",
}

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")
_DER_HINT = "is it DER? Convert it: openssl {} -inform der -in {} -out FILE.pem"

# Linux: linux/tls.h
_SOL_TLS, _TLS_TX, _TLS_RX = 282, 1, 2


def client_context(
    ca: FilePath | None = None,
    certificate: FilePath | None = None,
    key: FilePath | None = None,
    *,
    password: Password = None,
    profile: Profile = "bcp195",
    verify: bool = True,
    check_hostname: bool = True,
    ktls: bool | None = None,
) -> ssl.SSLContext:
    """Return the context of a requestor: ``ae.associate(..., tls_args=(context, "name of the peer"))``.

    Parameters
    ----------
    ca : path, optional
        Whom to trust: a PEM file with one or more certificates, of CAs or of the very peer, or a directory of such
        files named by ``openssl rehash``. By default the system's CAs.
    certificate : path, optional
        PEM file with our certificate and those between it and the CA, in this order; for peers that ask for one.
    key : path, optional
        PEM file with its private key; by default it is in `certificate`.
    password : str, bytes or callable, optional
        The password of the key, or a function without arguments that returns it. It is asked for only if the key is
        encrypted. Nobody is ever asked on the terminal.
    profile : {"bcp195", "bcp195-modified"}
        The profile of PS3.15 B.12 (any peer of today) or B.13 (permits nothing beside its own list).
        Both: TLS 1.2 and 1.3, forward secrecy, authenticated encryption, RSA keys of 2048 bits or more.
    verify : bool
        False accepts any certificate, for tests: who listens in between can read and change everything.
    check_hostname : bool
        Whether the peer's certificate has to name the host of ``tls_args``. False: any certificate of the CAs will do,
        as it is common where certificates belong to devices that have no name.
    ktls : bool, optional
        Whether the kernel may encrypt and decrypt (see `kernel_tls`): by default where Python offers it.

    Returns
    -------
    ssl.SSLContext
        The context.

    Raises
    ------
    TypeError
        If an argument is of the wrong type; the message names it.
    ValueError
        If a file is not what it has to be, certificate and key do not belong together, the password is missing or
        wrong, an argument does not go with another, or `ktls` is True and Python (3.12, OpenSSL 3) has no such option.
    OSError
        If a file cannot be read.
    """
    _check_flags(verify=verify, check_hostname=check_hostname)
    if not verify and ca is not None:
        raise ValueError("ca has no meaning with verify=False: no certificate would be checked")
    context = _context(ssl.PROTOCOL_TLS_CLIENT, profile, ktls)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.check_hostname = check_hostname
        if ca is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            _trust(context, "ca", ca)
    if certificate is not None:
        _identify(context, certificate, key, password)
    elif key is not None or password is not None:
        name = "password" if key is None else "key"
        raise ValueError(f"{name} was given, but no certificate that it belongs to")
    return context


def server_context(
    certificate: FilePath,
    key: FilePath | None = None,
    *,
    password: Password = None,
    client_ca: FilePath | None = None,
    client_required: bool = True,
    profile: Profile = "bcp195",
    ktls: bool | None = None,
) -> ssl.SSLContext:
    """Return the context of an acceptor: ``ae.start_server(..., ssl_context=context)``.

    Parameters
    ----------
    certificate : path
        PEM file with our certificate and those between it and the CA, in this order.
    key : path, optional
        PEM file with its private key; by default it is in `certificate`.
    password : str, bytes or callable, optional
        The password of the key, or a function without arguments that returns it. It is asked for only if the key is
        encrypted. Nobody is ever asked on the terminal.
    client_ca : path, optional
        Mutual TLS: whose certificates the peers must have, a file or directory as `ca` of `client_context`. By default
        peers are not asked for a certificate.
    client_required : bool
        With `client_ca`: False lets a peer in that has no certificate; one that is not good is still refused.
    profile : {"bcp195", "bcp195-modified"}
        As for `client_context`.
    ktls : bool, optional
        As for `client_context`.

    Returns
    -------
    ssl.SSLContext
        The context.

    Raises
    ------
    TypeError, ValueError, OSError
        As for `client_context`.
    """
    _check_flags(client_required=client_required)
    if not client_required and client_ca is None:
        raise ValueError("client_required=False has no meaning without client_ca")
    context = _context(ssl.PROTOCOL_TLS_SERVER, profile, ktls)
    _identify(context, certificate, key, password)
    if client_ca is not None:
        _trust(context, "client_ca", client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


class KernelTls(NamedTuple):
    """What of a TLS connection the kernel does itself.

    Attributes
    ----------
    sends : bool
        It encrypts what is sent.
    receives : bool
        It decrypts what is received.
    """

    sends: bool
    receives: bool


def kernel_tls(sock: socket.socket) -> KernelTls:
    """Ask the kernel whether it encrypts and decrypts a connection itself (kTLS, Linux).

    It does if the context allows it (Python 3.12 with OpenSSL 3; `ktls`), the kernel has its module ``tls``, and both
    know the cipher that was agreed on. OpenSSL decides that during the handshake, and says nothing if it comes to
    nothing.

    Parameters
    ----------
    sock : socket.socket
        A TLS socket after its handshake.

    Returns
    -------
    KernelTls
        What the kernel says of this socket; both False on other systems.
    """
    return KernelTls(_has_keys(sock, _TLS_TX), _has_keys(sock, _TLS_RX))


def _has_keys(sock: socket.socket, direction: int) -> bool:
    try:
        return len(sock.getsockopt(_SOL_TLS, direction, 4)) == 4
    except OSError:
        return False


# Contexts -------------------------------------------------------------------------------------------------------


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")


def _context(protocol: Any, profile: str, ktls: bool | None) -> ssl.SSLContext:
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, not {profile!r}")
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(PROFILES[profile])
    # RFC 9325 3.3 (no compression: CRIME) and 3.5; nobody renegotiates a DICOM connection
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # A certificate that is given as trusted is trusted, even if it is no root: the peer's own, for instance
    context.verify_flags |= ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    option = getattr(ssl, "OP_ENABLE_KTLS", None)
    if ktls is not None:
        _check_flags(ktls=ktls)
    if ktls and option is None:
        raise ValueError("ktls=True needs Python 3.12 or newer, with OpenSSL 3")
    if option is not None and ktls is not False:
        context.options |= option
    return context


def _trust(context: ssl.SSLContext, name: str, path: FilePath) -> None:
    """Trust the certificates of a file or directory."""
    path = _path(name, path)
    if os.path.isdir(path):
        if not any(re.fullmatch(r"[0-9a-f]{8}\.\d+", entry) for entry in os.listdir(path)):
            raise ValueError(
                f"{name}: the directory {path} has no certificates under the names that OpenSSL looks for; "
                f"run: openssl rehash {path}"
            )
        context.load_verify_locations(capath=path)
        return
    if not _CERTIFICATE.search(_content(name, path)):
        raise ValueError(f"{name}: no PEM certificate in {path}; {_DER_HINT.format('x509', path)}")
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise ValueError(f"{name}: the certificates in {path} cannot be read: {error}") from error


def _identify(
    context: ssl.SSLContext, certificate: FilePath, key: FilePath | None, password: Password
) -> None:
    """Load our certificate and its key."""
    certificate = _path("certificate", certificate)
    if not _CERTIFICATE.search(_content("certificate", certificate)):
        raise ValueError(
            f"certificate: no PEM certificate in {certificate}; {_DER_HINT.format('x509', certificate)}"
        )
    key_path = certificate if key is None else _path("key", key)
    if not _PRIVATE_KEY.search(_content("key", key_path)):
        hint = "give the file that has it as key" if key is None else _DER_HINT.format("pkey", key)
        raise ValueError(f"key: no PEM private key in {key_path}; {hint}")
    secret = _Secret(password)
    try:
        context.load_cert_chain(certificate, key_path, secret)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"the key in {key_path} does not belong to the certificate in {certificate}"
        elif secret.asked:
            problem = f"password: it does not open the key in {key_path}"
        else:
            problem = (
                f"certificate: {certificate} with the key in {key_path} cannot be used: {error}"
            )
        raise ValueError(problem) from error
    except _NoPassword as error:
        raise ValueError(
            f"password: the key in {key_path} is encrypted, and no password was given"
        ) from error


class _NoPassword(Exception):
    """A password is needed, and there is none."""


class _Secret:
    """The password, for OpenSSL; without it, OpenSSL would ask on the terminal.

    Parameters
    ----------
    password : str, bytes, callable or None
        As for `client_context`.

    Attributes
    ----------
    asked : bool
        Whether OpenSSL wanted it.
    """

    def __init__(self, password: Password) -> None:
        if not (password is None or isinstance(password, (str, bytes)) or callable(password)):
            raise TypeError(
                f"password must be a str, bytes or a function, not a {type(password).__name__}"
            )
        self._password = password
        self.asked = False

    def __call__(self) -> str | bytes:
        self.asked = True
        value = self._password
        if callable(value):
            value = value()
        if value is None:
            raise _NoPassword
        if not isinstance(value, (str, bytes)):
            raise TypeError(f"password must return a str or bytes, not a {type(value).__name__}")
        return value


def _path(name: str, path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, not a {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path of str, not of {type(text).__name__}")
    if not text:
        raise ValueError(f"{name} must not be an empty path")
    return text


def _content(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise type(error)(error.errno, f"{name}: {error.strerror}", path) from error
