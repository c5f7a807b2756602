"""Certificates for the tests of TLS."""

from __future__ import annotations

import pytest
from helpers.pem import Pem


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return Pem(tmp_path_factory.mktemp("pem"))
