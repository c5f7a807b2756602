"""Certificates and keys made for a test run, as the PEM files that people have."""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

SECRET = "correct horse"


class Pem:
    """Files of a CA, of a stranger, and of certificates of the first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.stranger = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.ca = self._write("ca", self.authority.cert_pem.bytes())
        self.other_ca = self._write("other-ca", self.stranger.cert_pem.bytes())
        self.certificate, self.key = self.issue("server", "localhost", "127.0.0.1")
        self.client, self.client_key = self.issue("client", "client@example.org")
        self.both = self._write("both", self.key.read_bytes() + self.certificate.read_bytes())
        self.locked = self._write("locked", _encrypted(self.key.read_bytes()))
        self.text = self._write("text", b"nothing of use")

    def issue(self, name: str, *identities: str, ca: trustme.CA | None = None) -> tuple[Path, Path]:
        made = (ca or self.authority).issue_cert(*identities, key_type=trustme.KeyType.ECDSA)
        return (
            self._write(name, b"".join(part.bytes() for part in made.cert_chain_pems)),
            self._write(f"{name}-key", made.private_key_pem.bytes()),
        )

    def _write(self, name: str, content: bytes) -> Path:
        path = self.directory / f"{name}.pem"
        path.write_bytes(content)
        return path


def _encrypted(pem: bytes) -> bytes:
    return serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(SECRET.encode()),
    )
