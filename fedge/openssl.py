"""Imports without OpenSSL, which takes 5 MB of a process that makes no TLS connection.

Python's `hashlib` and `ssl` load OpenSSL when they are imported, and numpy and paho import them
whether they are used or not. `hashlib` has implementations of its own for when OpenSSL is missing
(in modules like `_sha256`), which are used then. Of `ssl`, a process without TLS needs only the
names of classes with which it compares errors and sockets.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

#: hashlib's own implementations, by the Python version from which they are called so.
_OWN_HASHES = ("_md5", "_sha1", "_sha3", "_blake2")
_OWN_SHA2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
#: Modules that load OpenSSL.
_LOADERS = ("ssl", "_ssl", "hashlib", "_hashlib")
#: Errors of `ssl` that code compares with when it reads from a plain socket too.
_ERRORS = (
    "SSLWantReadError",
    "SSLWantWriteError",
    "SSLEOFError",
    "SSLZeroReturnError",
    "SSLSyscallError",
    "SSLCertVerificationError",
    "CertificateError",
)


@contextmanager
def left_out() -> Iterator[None]:
    """Imports inside the block load no OpenSSL.

    Modules imported there can compare with the names of `ssl` and cannot make TLS connections.
    Afterwards `import ssl` works as ever. Does nothing where OpenSSL is loaded already, or where
    this Python has hashes from OpenSSL only.
    """
    if any(name in sys.modules for name in _LOADERS) or not _has_own_hashes():
        yield
        return
    sys.modules["ssl"] = _names()
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # an ImportError for hashlib
    try:
        import hashlib  # noqa: F401  with its own hashes from now on
        import hmac  # noqa: F401  looks for OpenSSL's as well

        yield
    finally:
        del sys.modules["ssl"], sys.modules["_hashlib"]


def _has_own_hashes() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in (*_OWN_HASHES, *_OWN_SHA2))


def _names() -> ModuleType:
    """Returns a module with the names of `ssl` that code without TLS compares with."""
    module = ModuleType("ssl", "Names of ssl, without OpenSSL.")
    error = type("SSLError", (OSError,), {})
    found = {"SSLError": error, **{name: type(name, (error,), {}) for name in _ERRORS}}
    found |= {name: type(name, (), {}) for name in ("SSLSocket", "SSLContext", "SSLObject")}
    module.__dict__.update(found)
    return module
