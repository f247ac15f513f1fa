"""Which models there are, by name. Torch-free.

``models.yaml`` maps names to weights; :meth:`Registry.resolve` turns a name, a folder or a Hugging Face repository into
a :class:`Checkpoint`. Only configuration, tokenizer, template and safetensors files are ever downloaded: no pickles,
and no code that came with a model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mmserve.checkpoint import QUANTIZATIONS, Checkpoint, read_checkpoint, text_config
from mmserve.errors import CheckpointError, ConfigError, ModelNotFound
from mmserve.hub import fetch, fetch_tokenizer, find
from mmserve.types import MEDIA_KINDS, MediaKind

__all__ = ["Checkpoint", "ModelEntry", "Registry", "load_registry", "text_config"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of ``models.yaml``; that file's head explains the fields."""

    name: str
    family: str
    weights: str
    revision: str | None = None
    dtype: str | None = None
    template: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    licence: str = ""
    description: str = ""
    json_style: str = "compact"
    tokenizer: str | None = None
    quantization: str | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    media: tuple[MediaKind, ...] | None = None


@dataclass(frozen=True, slots=True)
class Registry:
    """The models known by name; ``folder`` is where the file they came from lies."""

    entries: Mapping[str, ModelEntry]
    folder: Path

    def resolve(self, name_or_path: str, *, offline: bool = False) -> Checkpoint:
        """The checkpoint of a model known by name, in a folder, or in a Hugging Face repository (``owner/name``, or
        ``owner/name@revision``).

        A repository is downloaded on first use, unless ``offline`` or ``HF_HUB_OFFLINE=1`` allows only what is already
        on this machine. Raises ``ModelNotFound`` for a name that means nothing here, ``CheckpointError`` for files that
        are missing or damaged, and ``ConfigError`` for a model that is not served; each says what to do.
        """
        entry = self.entries.get(name_or_path)
        path = self.fetch(name_or_path, offline=offline)
        if entry is None:
            tokenizer = self._tokenizer(name_or_path, offline)
            return read_checkpoint(path, name=_plain_name(name_or_path), tokenizer=tokenizer)
        checkpoint = read_checkpoint(
            path,
            name=entry.name,
            dtype=entry.dtype,
            template=self._template(entry),
            max_model_len=entry.limits.get("max_model_len"),
            description=entry.description,
            licence=entry.licence,
            json_style=entry.json_style,
            tokenizer=self._tokenizer(entry.weights, offline),
            quantization=entry.quantization,
            media=entry.media,
        )
        if checkpoint.family != entry.family:
            raise ConfigError(f"models.yaml calls {entry.name} a {entry.family}, but its files say {checkpoint.family}")
        return checkpoint

    def fetch(self, name_or_path: str, *, offline: bool = False) -> Path:
        """The folder of a model's files, downloaded if need be; names and errors as for :meth:`resolve`."""
        entry = self.entries.get(name_or_path)
        weights = name_or_path if entry is None else entry.weights
        if (folder := _folder(weights)) is not None:
            return folder
        if not _REPOSITORY.fullmatch(weights):
            known = ", ".join(self.entries) or "none"
            raise ModelNotFound(
                f"there is no model {weights!r}: give a name from models.yaml ({known}), a checkpoint folder, "
                "or a Hugging Face repository as owner/name",
                param="model",
            )
        repository, _, revision = weights.partition("@")
        if entry is None:
            return fetch(repository, revision or None, offline=offline)
        return fetch(repository, revision or entry.revision, offline=offline, size=entry.memory.get("weights"))

    def find(self, entry: ModelEntry) -> Path | None:
        """The folder of an entry's files where they are all on this machine. Uses no network."""
        repository, _, revision = entry.weights.partition("@")
        try:
            return _folder(entry.weights) or find(repository, revision or entry.revision)
        except CheckpointError:
            return None

    def _tokenizer(self, weights: str, offline: bool) -> Path | None:
        """The folder of a tokenizer that is not beside its ``weights``, by the entry that knows them."""
        given = next((each.tokenizer for each in self.entries.values() if each.weights == weights), None)
        if given is None:
            return None
        path = Path(given).expanduser()
        return path if path.is_dir() else fetch_tokenizer(given, offline=offline)

    def _template(self, entry: ModelEntry) -> str | None:
        if entry.template is None:
            return None
        try:
            return (self.folder / entry.template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"the template of {entry.name} cannot be read: {error}") from None


def load_registry(path: Path | None = None) -> Registry:
    """The registry in ``path``; by default ``models.yaml`` inside the installed package, else at the repository's root.

    Raises ``ConfigError`` where the file is missing, malformed, or has a field that is not known.
    """
    path = path or _default_file()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must map model names to their settings")
    return Registry({str(name): _entry(path, str(name), fields) for name, fields in content.items()}, path.parent)


def _entry(path: Path, name: str, fields: Any) -> ModelEntry:
    known = {each.name: each for each in dataclasses.fields(ModelEntry) if each.name != "name"}
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: {name} must be a mapping with at least family and weights")
    for wrong in fields.keys() - known.keys():
        raise ConfigError(f"{path}: {name} has the unknown field {wrong!r}; known are {', '.join(known)}")
    for needed in {"family", "weights"} - fields.keys():
        raise ConfigError(f"{path}: {name} lacks {needed}")
    limits = fields.get("limits", {})
    if not isinstance(limits, dict) or limits.keys() - {"max_model_len"}:
        raise ConfigError(f"{path}: the limits of {name} may hold max_model_len only, got {limits}")
    if fields.get("json_style", "compact") not in ("compact", "spaced"):
        raise ConfigError(f"{path}: json_style of {name} must be compact or spaced, not {fields['json_style']!r}")
    memory = fields.get("memory", {})
    sizes = memory.values() if isinstance(memory, dict) else [None]
    if not all(isinstance(size, int) and size > 0 for size in sizes) or memory.keys() - {"weights", "kv_per_token"}:
        raise ConfigError(f"{path}: the memory of {name} may hold weights and kv_per_token, in bytes, got {memory}")
    if fields.get("quantization") not in (None, *QUANTIZATIONS):
        kinds = ", ".join(QUANTIZATIONS)
        raise ConfigError(f"{path}: quantization of {name} must be one of {kinds}, not {fields['quantization']!r}")
    media = fields.get("media")
    if media is not None and not (isinstance(media, list) and set(media) <= set(MEDIA_KINDS)):
        raise ConfigError(f"{path}: media of {name} must be a list of {', '.join(MEDIA_KINDS)}, got {media!r}")
    return ModelEntry(name=name, **{**fields, "media": None if media is None else tuple(media)})


def _default_file() -> Path:
    package = Path(str(resources.files("mmserve")))
    installed = package / "models.yaml"
    return installed if installed.is_file() else package.parent / "models.yaml"


def _folder(weights: str) -> Path | None:
    """The folder that ``weights`` names, if it names one. Raises ``CheckpointError`` for one missing in the package."""
    if weights.startswith("package:"):
        return _packaged(weights.removeprefix("package:"))
    path = Path(weights).expanduser()
    return path if weights and path.is_dir() else None


def _packaged(name: str) -> Path:
    path = Path(str(resources.files("mmserve"))) / name
    if not path.is_dir():
        raise CheckpointError(f"this build of mmserve carries no model under {name}: choose another with --model")
    return path


def _plain_name(name_or_path: str) -> str:
    """The name that an unlisted model is served under: its folder's, or the repository's in full."""
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.is_dir() else name_or_path.partition("@")[0]
