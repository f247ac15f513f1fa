"""Which files of a folder are pictures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NoReturn

from mmserve.errors import ConfigError

PICTURE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def find_pictures(folder: Path, *, recursive: bool = False) -> list[str]:
    """Names of the pictures in ``folder``, relative to it and with ``/`` between parts, in the order of their names.

    A picture is known by its suffix, in either case. Names that begin with a dot are passed over, and links to
    folders are not followed. Raises ConfigError when the folder cannot be read or has no picture.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}")
    found = []
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        found += [
            Path(where, name).relative_to(folder).as_posix()
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES
        ]
    if not found:
        hint = "" if recursive else "; its subfolders are searched only when that is asked for (--recursive)"
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        raise ConfigError(f"there is no picture in {folder} (looked for {kinds}){hint}")
    return sorted(found)


def read_picture(path: Path) -> tuple[bytes, str]:
    """A file's bytes and their SHA-256 in hexadecimal. Raises OSError."""
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def _refuse(error: OSError) -> NoReturn:
    raise ConfigError(f"cannot read the folder {error.filename}: {error.strerror}") from error
