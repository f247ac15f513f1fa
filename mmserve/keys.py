"""API keys: made, kept in a file as digests, and looked up. A leaf: no torch, no HTTP.

A key is 256 random bits that this module makes, so its plain SHA-256 is kept and nothing slower: there is no dictionary
to try, and a slow hash would cost every request its time. The file tells nobody a key, and a key is shown once.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmserve.errors import ConfigError

PREFIX = "mms-"
"""What every key begins with, so that scanners of leaked secrets can know one."""

_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key as it is kept: ``digest`` is the SHA-256 of the key in hexadecimal, ``created`` a Unix time.

    ``identity`` is random and never used again, also where a name is. ``requests_per_minute`` and
    ``pictures_per_minute`` are the most in any 60 seconds and ``concurrency`` the most at a time; 0 is no limit. Keys
    of one ``cache_group`` share cached work; an empty one shares with nobody. ``admin`` may do what touches others.
    """

    name: str
    identity: str
    digest: str
    created: int = 0
    admin: bool = False
    requests_per_minute: int = 600
    concurrency: int = 64
    pictures_per_minute: int = 1200
    cache_group: str = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            wanted = {"str": str, "int": int, "bool": bool}[str(each.type)]
            if type(getattr(self, each.name)) is not wanted:
                raise ConfigError(f"{each.name} of a key must be of type {wanted.__name__}")
        for name, text in (("name", self.name), ("cache_group", self.cache_group)):
            if not _NAME.fullmatch(text) and (text or name == "name"):
                raise ConfigError(f"{name} must be 1 to 64 letters, digits or . _ @ -, and begin with one of the first")
        if not re.fullmatch(r"[0-9a-f]{16}", self.identity) or not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise ConfigError("identity and digest of a key must be as mmserve keys add wrote them")
        if min(self.requests_per_minute, self.concurrency, self.pictures_per_minute) < 0:
            raise ConfigError("a key's limits must be 0 (none) or more")


def new_key(name: str, **options: Any) -> tuple[Key, str]:
    """A key and its secret text, which is nowhere else. Raises ``ConfigError`` for a name or limit that cannot be."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return Key(name, secrets.token_hex(8), digest_of(secret), int(time.time()), **options), secret


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def find_key(keys: Sequence[Key], secret: str) -> Key | None:
    """The key whose text is ``secret``. Takes as long whichever it is, and compares digests in constant time."""
    presented, found = digest_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, presented):
            found = key
    return found


def load_keys(path: Path) -> tuple[Key, ...]:
    """The keys in the file at ``path``. Raises ``ConfigError`` where it is missing or not such a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file of keys {path}: mmserve keys add NAME --keys-file {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file of keys {path} cannot be read: {error}") from None
    try:
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']} is not {_VERSION}")
        keys = tuple(Key(**entry) for entry in content["keys"])
    except (ConfigError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"the file of keys {path} is damaged: {error}") from None
    _require_distinct(keys)
    return keys


def add_key(path: Path, key: Key) -> None:
    """Add ``key`` to the file, which is made where there is none. Raises ``ConfigError`` for a name that is taken."""
    with _locked(path):
        _save(path, (*(load_keys(path) if path.exists() else ()), key))


def revoke_key(path: Path, name: str) -> Key:
    """Take the key called ``name`` out of the file; returns it. Raises ``ConfigError`` where there is none."""
    with _locked(path):
        keys = load_keys(path)
        found = next((key for key in keys if key.name == name), None)
        if found is None:
            known = ", ".join(key.name for key in keys) or "none"
            raise ConfigError(f'there is no key called "{name}" in {path} (there: {known})')
        _save(path, tuple(key for key in keys if key is not found))
        return found


def _require_distinct(keys: Sequence[Key]) -> None:
    for what in ("name", "identity", "digest"):
        values = [getattr(key, what) for key in keys]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            shown = f' "{twice}"' if what == "name" else ""
            raise ConfigError(f"two keys have the same {what}{shown}; choose another, or revoke the one there is")


def _save(path: Path, keys: Sequence[Key]) -> None:
    _require_distinct(keys)
    content: Mapping[str, Any] = {"version": _VERSION, "keys": [asdict(key) for key in keys]}
    handle, written = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # readable by its owner only
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)  # a server that reads meanwhile sees the old file or the new one, whole
    except BaseException:
        os.unlink(written)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. The lock is a file beside the other, since that one is replaced."""
    import fcntl  # not on Windows, where the rest of the command line works

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(f"the file of keys {path} cannot be written: {error}") from None
