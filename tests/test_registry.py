from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import mmserve
from mmserve.checkpoint import FAMILIES
from mmserve.errors import CheckpointError, ConfigError, ModelNotFound
from mmserve.hub import ALLOWED, IGNORED
from mmserve.registry import ModelEntry, Registry, load_registry
from tests.checkpoints import tiny_qwen2_vl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_vl(tmp_path_factory.mktemp("checkpoints") / "my-model")


def registry(**fields: Any) -> Registry:
    entry = ModelEntry(name="known", **{"family": "qwen2_vl", "weights": "owner/known", **fields})
    return Registry({"known": entry}, Path())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[dict[str, Any]]:
    """Stands for the Hugging Face hub: records what is asked of it and answers with ``folder``."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append({"repository": repository, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_the_shipped_file_lists_the_models() -> None:
    entries = load_registry().entries
    assert list(entries)[:3] == ["pocket-vl", "qwen2-vl-2b", "qwen2-vl-7b"]
    assert entries["pocket-vl"].weights == "package:assets/pocket-vl"
    assert entries["qwen2-vl-2b"].weights == "Qwen/Qwen2-VL-2B-Instruct"
    assert all(entry.licence and entry.description and entry.dtype for entry in entries.values())
    assert {entry.family for entry in entries.values()} == set(FAMILIES.values())
    assert len({entry.weights for entry in entries.values()}) == len(entries)


def test_the_file_is_found_inside_the_package_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mmserve"
    package.mkdir()
    monkeypatch.setattr("mmserve.registry.resources.files", lambda name: {"mmserve": package}[name])
    (tmp_path / "models.yaml").write_text("outside: {family: f, weights: w}")
    assert list(load_registry().entries) == ["outside"]
    (package / "models.yaml").write_text("inside: {family: f, weights: w}")
    assert list(load_registry().entries) == ["inside"]


def test_a_file_of_ones_own(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    (tmp_path / "m.yaml").write_text(
        f"mine: {{family: qwen2_vl, weights: {folder}, dtype: bfloat16, template: chat.jinja, quantization: fp8, "
        "limits: {max_model_len: 512}, licence: MIT, description: my own}\n"
    )
    checkpoint = load_registry(tmp_path / "m.yaml").resolve("mine")
    assert (checkpoint.name, checkpoint.path, checkpoint.dtype) == ("mine", folder, "bfloat16")
    assert (checkpoint.template, checkpoint.max_model_len) == ("{{ messages }}", 512)
    assert (checkpoint.licence, checkpoint.description) == ("MIT", "my own")
    assert checkpoint.quantization == "fp8"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "must map model names"),
        ("a: [", "cannot be read"),
        ("a: 1", "a must be a mapping"),
        ("a: {family: f}", "a lacks weights"),
        ("a: {family: f, weights: w, weigths: x}", "unknown field 'weigths'; known are family, weights"),
        ("a: {family: f, weights: w, limits: {max_tokens: 1}}", "may hold max_model_len only"),
        ("a: {family: f, weights: w, limits: 3}", "may hold max_model_len only"),
        ("a: {family: f, weights: w, json_style: wide}", "must be compact or spaced, not 'wide'"),
        ("a: {family: f, weights: w, media: [smell]}", "media of a must be a list of image, video, audio"),
        ("a: {family: f, weights: w, media: image}", "media of a must be a list of image, video, audio"),
        ("a: {family: f, weights: w, quantization: int4}", "must be one of int8, fp8, not 'int4'"),
        ("a: {family: f, weights: w, memory: {disk: 4}}", "may hold weights and kv_per_token, in bytes"),
        ("a: {family: f, weights: w, memory: {weights: 4 GB}}", "may hold weights and kv_per_token, in bytes"),
        ("a: {family: f, weights: w, memory: 4}", "may hold weights and kv_per_token, in bytes"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "models.yaml").write_text(content)
    with pytest.raises(ConfigError, match=says):
        load_registry(tmp_path / "models.yaml")


def test_a_missing_file_or_template_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_registry(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="template of known cannot be read"):
        registry(weights=str(folder), template="none.jinja").resolve("known")


def test_a_folder_is_served_under_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry().resolve(str(folder)).name == "my-model"
    monkeypatch.chdir(folder)
    assert registry().resolve(".").name == "my-model"


def test_an_entry_of_another_family_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="calls known a llava, but its files say qwen2_vl"):
        registry(weights=str(folder), family="llava").resolve("known")


@pytest.mark.parametrize("name", ["unknown", "/no/such/folder", "./a/b", "a/b/c", "../x", "", "https://example.com/m"])
def test_a_name_that_means_nothing_is_not_found(
    name: str, hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=r"known.*checkpoint folder.*owner/name") as caught:
        registry().resolve(name)
    assert caught.value.param == "model"
    assert hub == []


def test_a_repository_is_fetched_without_code_or_pickles(hub: list[dict[str, Any]]) -> None:
    assert registry(revision="abc").resolve("known").name == "known"
    assert registry().resolve("someone/something", offline=True).name == "someone/something"
    patterns = {"allow_patterns": list(ALLOWED), "ignore_patterns": list(IGNORED)}
    assert hub == [
        {"repository": "owner/known", "revision": "abc", "local_files_only": True, **patterns},
        {"repository": "owner/known", "revision": "abc", **patterns},
        {"repository": "someone/something", "revision": None, "local_files_only": True, **patterns},
    ]
    assert not any(pattern.endswith((".py", ".bin", ".pt", ".pth", "*")) for pattern in ALLOWED)


def test_a_revision_pins_the_files(hub: list[dict[str, Any]]) -> None:
    """A commit that is here is taken without asking; a branch may have moved."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    for named in (f"owner/name@{commit}", "owner/name@main"):
        assert registry().resolve(named).name == "owner/name"
    assert registry(weights=f"owner/known@{commit}").resolve("known").name == "known"
    found = [(call["revision"], call.get("local_files_only", False)) for call in hub]
    assert found == [(commit, True), ("main", True), ("main", False), (commit, True)]


def test_offline_finds_nothing_that_was_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="not on this machine"):
        load_registry().resolve("qwen2-vl-2b", offline=True)


def test_the_embedded_model_lies_in_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserve.registry.resources.files", lambda _: tmp_path)
    with pytest.raises(CheckpointError, match="carries no model under assets/tiny"):
        registry(weights="package:assets/tiny").resolve("known")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "tiny").symlink_to(folder)
    assert registry(weights="package:assets/tiny").resolve("known").path == tmp_path / "assets" / "tiny"


def test_the_registry_brings_in_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    code = f"import sys, mmserve.registry as r; r.load_registry(); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Path(mmserve.__file__).parent.name == "mmserve"


def test_a_tokenizer_from_elsewhere(hub: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    known = registry(tokenizer="owner/words")
    for name in ("known", "owner/known"):  # also where the model is named by its repository
        hub.clear()
        assert known.resolve(name).tokenizer_path == folder
        assert {call["repository"] for call in hub[:-1]} == {"owner/known"}
        assert hub[-1]["repository"] == "owner/words"
        assert hub[-1]["allow_patterns"] == ["tokenizer.json", "tokenizer_config.json"]
    hub.clear()
    assert registry(tokenizer=str(tmp_path)).resolve("known").tokenizer_path == tmp_path
    assert {call["repository"] for call in hub} == {"owner/known"}
    assert registry().resolve("known").tokenizer is None
