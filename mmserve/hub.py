"""Checkpoints from Hugging Face: finding those that are on this machine, and fetching those that are not.

Files come through huggingface_hub into its cache. A connection that breaks is taken up again where it broke, and a
download that was ended goes on with the files that it lacks: what is complete is not fetched again.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import NoReturn

from mmserve.errors import CheckpointError, ModelNotFound

ALLOWED = (
    *("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"),
    *("merges.txt", "vocab.txt", "*.model"),
)
"""Configuration, tokenizer, template and weights: no pickles, and no code that came with a model."""

IGNORED = ("*/*", "consolidated*.safetensors")
"""Folders inside a repository, and the same weights once more in their makers' own layout."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WHY_KEPT = "what has arrived is kept, so try again later"


def find(repository: str, revision: str | None = None) -> Path | None:
    """The folder of a repository that is wholly on this machine; ``None`` where it is not. Uses no network."""
    # Imported here, as below: it takes longer than the rest of this module, and a folder never needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(ALLOWED),
            ignore_patterns=list(IGNORED),
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return Path(found) if is_whole(Path(found)) else None


def is_whole(folder: Path) -> bool:
    """Whether configuration and weights are there: an interrupted download leaves a part of them."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(file.is_file() for file in folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / str(name)).is_file() for name in names)


def fetch(repository: str, revision: str | None = None, *, offline: bool = False, size: int | None = None) -> Path:
    """The folder of a repository's files, downloaded where they are not on this machine in full.

    A ``revision`` that is a whole commit id pins the files: once they are here, nothing is asked of the network. A
    branch is looked at again each time, and what is here is used where there is no network. Progress is shown on a
    terminal. ``size``, in bytes, is about what must fit on the disk.

    Raises ``ModelNotFound`` and ``CheckpointError``, each with one sentence that says what to do.
    """
    here = find(repository, revision)
    if here is not None and (offline or (revision is not None and _COMMIT.fullmatch(revision))):
        return here
    if offline:
        raise _not_here(repository, "downloads are off (--offline): allow them")
    if here is None and size is not None:
        _check_disk(repository, size)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repository, revision=revision, allow_patterns=list(ALLOWED), ignore_patterns=list(IGNORED)
        )
    except Exception as error:  # besides its own, the library lets those of its HTTP and storage clients through
        _refuse(error, repository, revision)
    folder = Path(found)
    if not is_whole(folder):
        raise CheckpointError(
            f"{repository} came without config.json or without all of its .safetensors weights, and nothing else is "
            "read: try again, or choose a repository that has them"
        )
    return folder


def fetch_tokenizer(repository: str, *, offline: bool = False) -> Path:
    """The folder of a repository's tokenizer alone, downloaded where it is not on this machine.

    Raises ``ModelNotFound`` and ``CheckpointError``, each with one sentence that says what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repository, allow_patterns=list(TOKENIZER_FILES), local_files_only=offline)
    except Exception as error:  # as above
        if offline:
            raise _not_here(repository, "downloads are off (--offline): allow them") from None
        _refuse(error, repository, None)
    if not (Path(found) / TOKENIZER_FILES[0]).is_file():
        raise CheckpointError(f"{repository} came without {TOKENIZER_FILES[0]}: name one that has it as tokenizer")
    return Path(found)


def cache_folder() -> Path:
    """Where downloaded files lie; ``HF_HOME`` or ``HF_HUB_CACHE`` moves it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_disk(repository: str, size: int) -> None:
    folder = cache_folder()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    arrived = folder / f"models--{repository.replace('/', '--')}" / "blobs"
    if free + sum(file.stat().st_size for file in arrived.glob("*") if file.is_file()) < size:
        raise CheckpointError(
            f"{repository} takes {size / 1e9:.1f} GB, but the disk under {folder} has {free / 1e9:.1f} GB free: "
            "make room there, or set HF_HOME to a folder on another disk"
        )


def _not_here(repository: str, way_out: str) -> CheckpointError:
    return CheckpointError(
        f"{repository} is not on this machine, or not in full, and {way_out}; a checkpoint folder works too"
    )


def _refuse(error: Exception, repository: str, revision: str | None) -> NoReturn:
    """The sentence for what went wrong. The order counts: the library's errors derive from one another."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise CheckpointError(
            f"the disk under {cache_folder()} is full: make room there, or set HF_HOME to a folder on another disk; "
            f"{_WHY_KEPT}"
        ) from None
    if isinstance(error, errors.GatedRepoError):
        raise CheckpointError(
            f"the makers of {repository} ask for consent: give it at https://huggingface.co/{repository}, then set "
            "HF_TOKEN to a token of that account"
        ) from None
    if isinstance(error, errors.RevisionNotFoundError):
        raise ModelNotFound(
            f"{repository} has no revision {revision!r}: give a branch, a tag or a commit that it has", param="model"
        ) from None
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ModelNotFound(
            f"there is no folder and no public Hugging Face repository {repository}: check the spelling, "
            "or set HF_TOKEN if it is private",
            param="model",
        ) from None
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise _not_here(repository, "HF_HUB_OFFLINE forbids to download it: unset that") from None
        raise _not_here(repository, "huggingface.co cannot be reached: connect to the internet and try again") from None
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    raise CheckpointError(f"{repository} could not be fetched ({reason[:300]}): {_WHY_KEPT}") from error
