"""``mmserve models``, as a person and a script read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmserve import cli_models
from mmserve.cli import main
from mmserve.cli_models import Listed, listed, table
from mmserve.memory import MemoryNeed, memory_of
from mmserve.registry import ModelEntry, Registry, load_registry
from tests.checkpoints import tiny_qwen2_vl

HERE = ModelEntry("here", "qwen2_vl", "HERE", dtype="bfloat16", licence="MIT", description="A small one.")
AWAY = ModelEntry(
    "far-away",
    "llava_next",
    "owner/name",
    memory={"weights": 14_101_665_792, "kv_per_token": 524_288},
    description="b " * 40,
)
PLAIN = ModelEntry("unknown", "llama", "owner/other")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A folder, and two repositories that are not here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tiny_qwen2_vl(tmp_path / "here", torch_dtype="bfloat16")
    here = ModelEntry(**{**{name: getattr(HERE, name) for name in ModelEntry.__slots__}, "weights": str(folder)})
    made = Registry({"here": here, "far-away": AWAY, "unknown": PLAIN}, tmp_path)
    monkeypatch.setattr(cli_models, "load_registry", lambda: made)
    return made


def test_the_list_for_people(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert registry.entries
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    head, first, about, second, *rest = printed.splitlines()
    assert head.split() == ["NAME", "FILES", "WEIGHTS", "1K", "TOKENS", "FAMILY"]
    assert first.split() == ["here", "folder", "365.3", "kB", "256.0", "kB", "qwen2_vl"]
    assert about == "    A small one. [MIT]"
    assert second.split() == ["far-away", "not", "here", "14.1", "GB", "524", "MB", "llava_next"]
    assert max(map(len, printed.splitlines())) <= 72 or str(registry.folder) in printed
    assert any(line.split() == ["unknown", "not", "here", "?", "?", "llama"] for line in rest)
    assert "mmserve models download NAME" in " ".join(rest)
    ends = {line.index("  ", line.index("B  ")) for line in (first, second)}
    assert len(ends) == 1  # figures stand below one another


def test_the_list_for_scripts(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    here, away, unknown = json.loads(capsys.readouterr().out)
    folder = registry.entries["here"].weights
    need = memory_of(Path(folder), json.loads((Path(folder) / "config.json").read_text()), "bfloat16")
    assert (here["place"], here["path"]) == ("folder", folder)
    assert here["weights_bytes"] == need.weights
    assert here["kv_bytes_per_1k_tokens"] == 1000 * need.kv_per_token
    assert (away["place"], away["path"], away["weights_bytes"]) == ("not here", None, 14_101_665_792)
    assert away["kv_bytes_per_1k_tokens"] == 524_288_000
    assert (unknown["weights_bytes"], unknown["kv_bytes_per_1k_tokens"]) == (None, None)
    assert {"name", "family", "weights", "licence", "description", "quantization"} <= here.keys()


def test_a_downloaded_model_is_told_from_its_files(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(registry.entries["here"].weights)
    monkeypatch.setattr("mmserve.registry.find", lambda *_: folder)
    found = listed(registry, AWAY)
    assert found.place == "downloaded"
    config = json.loads((folder / "config.json").read_text())
    assert found.memory == memory_of(folder, config, "bfloat16")
    (folder / "config.json").write_text("{")
    assert listed(registry, AWAY).memory == MemoryNeed(**AWAY.memory)


def test_rounded_weights_need_less(registry: Registry) -> None:
    entry = registry.entries["here"]
    rounded = ModelEntry("small", entry.family, entry.weights, dtype="bfloat16", quantization="int8")
    plain, small = listed(registry, entry).memory, listed(registry, rounded).memory
    assert plain is not None
    assert small is not None
    assert small.weights < plain.weights
    assert small.kv_per_token == plain.kv_per_token


def test_the_embedded_model_is_always_here() -> None:
    registry = load_registry()
    found = listed(registry, registry.entries["pocket-vl"])
    assert found.place == "embedded"
    assert found.memory == MemoryNeed(11_361_024, 1024)
    gone = Listed(found.entry, None, None)
    assert gone.place == "left out"


def test_every_size_of_terminal_has_whole_words() -> None:
    rows = [Listed(AWAY, None, MemoryNeed(**AWAY.memory))]
    for width in (60, 80, 110):
        assert max(map(len, table(rows, width).splitlines()[2:])) <= width


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (11_400, "11.4 kB"),
        (999_600, "1.0 MB"),
        (28_672_000, "28.7 MB"),
        (524_288_000, "524 MB"),
        (16_582_751_232, "16.6 GB"),
    ],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert cli_models._size(count) == text


def test_a_download_prints_the_folder(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "download", "here"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == registry.entries["here"].weights
    assert main(["models", "download", "nothing"]) == 1
    assert "there is no model 'nothing'" in capsys.readouterr().err


def test_the_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["models", "--help"], "fetch a model's files now"),
        (["models", "download", "-h"], "NAME"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert words in capsys.readouterr().out
