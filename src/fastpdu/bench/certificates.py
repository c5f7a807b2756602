"""Certificates for the benchmarks of TLS, made for one run."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastpdu import tls
from fastpdu.bench.errors import BenchError
from fastpdu.bench.floor import TlsEnds

__all__ = ["Certificates", "certificates"]


@dataclass(frozen=True)
class Certificates:
    """Files of a CA and of one certificate, for "localhost", which both ends use.

    Attributes
    ----------
    ca, certificate, key : Path
        PEM files.
    version : ssl.TLSVersion or None
        The one version of TLS that our requestor offers.
    """

    ca: Path
    certificate: Path
    key: Path
    version: ssl.TLSVersion | None = None

    def ends(self) -> TlsEnds:
        """Return the contexts of an acceptor and of a requestor, as `fastpdu.tls` makes them."""
        client = tls.client_context(self.ca)
        if self.version is not None:
            client.minimum_version = client.maximum_version = self.version
        return tls.server_context(self.certificate, self.key), client

    def dcmtk_options(self) -> list[str]:
        """Return the options of DCMTK's programs, on either side."""
        return ["+tls", str(self.key), str(self.certificate), "+cf", str(self.ca)]


@contextlib.contextmanager
def certificates(version: ssl.TLSVersion | None = None) -> Iterator[Certificates]:
    """Make them; they are gone after the ``with`` block.

    Parameters
    ----------
    version : ssl.TLSVersion, optional
        The version of TLS to use.

    Raises
    ------
    BenchError
        If trustme is not installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise BenchError(
            "certificates for TLS are made with trustme, which is not installed",
            "pip install 'fastpdu[bench]'",
        ) from error
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    made = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    with tempfile.TemporaryDirectory(prefix="fastpdu-tls-") as scratch:
        ca, certificate, key = (Path(scratch, f"{name}.pem") for name in ("ca", "cert", "key"))
        files = Certificates(ca, certificate, key, version)
        authority.cert_pem.write_to_path(files.ca)
        made.private_key_pem.write_to_path(files.key)
        made.cert_chain_pems[0].write_to_path(files.certificate)
        yield files
