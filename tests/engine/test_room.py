"""Too little memory is one sentence, with the way out, before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine import room, runner
from mmserve.engine.build import build_engine
from mmserve.engine.room import LEAST_SLOTS, Room, check_room, free_bytes, room_for
from mmserve.errors import ConfigError
from tests.checkpoints import tiny_text
from tests.models.equality import resolve

CPU = torch.device("cpu")
MIB = 1024**2
SMALL = EngineConfig(device="cpu", encoder_cache_bytes=MIB)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Some megabytes, most of them in matrices."""
    path = tmp_path_factory.mktemp("wide") / "wide"
    return resolve(tiny_text(path, "llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=4))


def give(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: free)


def refusal(checkpoint: Checkpoint, config: EngineConfig, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(ConfigError) as caught:
        check_room(checkpoint, config, dtype, CPU)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_is_needed_at_the_least(checkpoint: Checkpoint, wide: Checkpoint) -> None:
    seeing = room_for(checkpoint, SMALL, torch.float32)
    assert seeing.kv == LEAST_SLOTS * 2 * 2 * 2 * 16 * 4
    assert seeing.rows == MIB
    assert room_for(wide, SMALL, torch.float32).rows == 0
    configured = room_for(checkpoint, dataclasses.replace(SMALL, kv_slots=1000), torch.bfloat16)
    assert configured.kv == 1000 * 2 * 2 * 2 * 16 * 2
    assert configured.weights == seeing.weights // 2
    assert configured.total == configured.weights + configured.kv + MIB


def test_just_enough_is_enough_and_a_byte_less_is_not(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    need = room_for(checkpoint, SMALL, torch.float32)
    give(monkeypatch, need.total)
    check_room(checkpoint, SMALL, torch.float32, CPU)
    give(monkeypatch, need.total - 1)
    assert refusal(checkpoint, SMALL).startswith("tiny needs 2 MiB of memory (")


@pytest.mark.parametrize(
    ("dtype", "slots", "spared", "says"),
    [
        (torch.float32, None, 0.5, "serve it with --dtype bfloat16, which takes"),
        (torch.float32, None, 0.27, "serve it with --dtype bfloat16 --quantization int8, which takes"),
        (torch.bfloat16, None, 0.6, "serve it with --quantization int8, which takes"),
        (torch.float32, 100_000, 1.1, "serve it with a smaller --kv-slots, which takes"),
        (torch.float32, None, 0.01, "end what else uses that memory, or choose a smaller model or another device"),
    ],
)
def test_the_sentence_has_the_smallest_change_that_helps(
    wide: Checkpoint, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, slots: int | None, spared: float, says: str
) -> None:
    need = room_for(wide, SMALL, dtype)
    give(monkeypatch, int(spared * need.total) + (MIB // 2 if spared > 0.1 else 0))
    said = refusal(wide, dataclasses.replace(SMALL, kv_slots=slots), dtype)
    assert says in said
    assert f"for its weights ({str(dtype).removeprefix('torch.')})" in said
    assert "for keys and values" in said


class TestSeveralRanks:
    def test_each_needs_its_share(self, wide: Checkpoint) -> None:
        whole = room_for(wide, SMALL, torch.float32)
        half = room_for(wide, dataclasses.replace(SMALL, tp_size=2), torch.float32)
        assert whole.weights / 2 < half.weights < 0.52 * whole.weights
        assert half.kv == whole.kv // 2

    def test_on_a_cpu_they_share_its_memory(self, wide: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        both = dataclasses.replace(SMALL, tp_size=2)
        need = room_for(wide, both, torch.float32)
        give(monkeypatch, 2 * need.total)
        check_room(wide, both, torch.float32, CPU)
        give(monkeypatch, 2 * need.total - 2)
        assert "but each of 2 processes on this machine has" in refusal(wide, both)

    @pytest.mark.parametrize(
        ("gpus", "spared", "says"), [(4, 0.6, "--tp 2, which"), (4, 0.35, "--tp 4, which"), (1, 0.6, "end what")]
    )
    def test_on_gpus_spreading_it_is_a_way_out(
        self, wide: Checkpoint, monkeypatch: pytest.MonkeyPatch, gpus: int, spared: float, says: str
    ) -> None:
        """But not over three, which would cut a head."""
        rounded = dataclasses.replace(wide, quantization="int8")
        give(monkeypatch, int(spared * room_for(rounded, SMALL, torch.bfloat16).total) + MIB // 2)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        with pytest.raises(ConfigError, match=rf"cuda has .* free: (serve it with )?{says}"):
            check_room(rounded, SMALL, torch.bfloat16, torch.device("cuda"))


def test_nothing_is_loaded_where_it_does_not_fit(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 1000)
    monkeypatch.setattr(runner, "build_model", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError, match=r"tiny needs .* but this machine has 0 MiB free"):
        build_engine(checkpoint, SMALL)


def test_rounded_weights_are_counted_as_such(wide: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = dataclasses.replace(wide, quantization="fp8")
    assert room_for(rounded, SMALL, torch.float32).weights < 0.4 * room_for(wide, SMALL, torch.float32).weights
    give(monkeypatch, 1000)
    assert "for its weights (fp8)" in refusal(rounded, SMALL)


def test_files_that_cannot_be_read_are_left_to_the_loader(checkpoint: Checkpoint, tmp_path: Path) -> None:
    check_room(dataclasses.replace(checkpoint, path=tmp_path), SMALL, torch.float32, CPU)


class TestFreeMemory:
    @pytest.fixture
    def machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(room, "_CGROUP", tmp_path)
        monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
        return tmp_path

    def test_where_nothing_is_known_all_memory_counts(self, machine: Path) -> None:
        assert machine.is_dir()
        assert free_bytes(CPU) > 64 * MIB

    def test_what_linux_says_is_available(self, machine: Path) -> None:
        (machine / "meminfo").write_text("MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: 2048 kB\n")
        assert free_bytes(CPU) == 2 * MIB

    def test_a_containers_limit_holds_and_its_file_pages_do_not_count(self, machine: Path) -> None:
        (machine / "memory.max").write_text(f"{10 * MIB}\n")
        (machine / "memory.current").write_text(f"{9 * MIB}\n")
        (machine / "memory.stat").write_text(f"anon 5\ninactive_file {2 * MIB}\nactive_file {MIB}\n")
        assert free_bytes(CPU) == 4 * MIB
        (machine / "memory.current").write_text(f"{90 * MIB}\n")
        assert free_bytes(CPU) == 0
        (machine / "memory.max").write_text("max\n")
        assert free_bytes(CPU) > 64 * MIB


def test_sizes_read_well() -> None:
    assert Room(1, 2, 3).total == 6
    assert [room._gib(size) for size in (0, 5 * MIB, 1024 * MIB, 15 * 1024 * MIB)] == [
        "0 MiB",
        "5 MiB",
        "1.0 GiB",
        "15.0 GiB",
    ]
