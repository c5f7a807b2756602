"""fastpdu: the transport that makes pynetdicom fast.

>>> import fastpdu
>>> fastpdu.install()

From here on every association of this process moves whole DIMSE messages through the compiled engine.
"""

from fastpdu import tls
from fastpdu.ae import AE
from fastpdu.compatibility import IncompatibleError
from fastpdu.filestore import FileStore, StoredInstance
from fastpdu.options import TransportOptions
from fastpdu.patch import install, installed, is_installed, uninstall
from fastpdu.sender import Sender
from fastpdu.stats import TcpInfo, TransportStats
from fastpdu.store_many import StoreResult

__version__ = "0.1.0"

__all__ = [
    "AE",
    "FileStore",
    "IncompatibleError",
    "Sender",
    "StoreResult",
    "StoredInstance",
    "TcpInfo",
    "TransportOptions",
    "TransportStats",
    "__version__",
    "install",
    "installed",
    "is_installed",
    "tls",
    "uninstall",
]
