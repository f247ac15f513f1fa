"""Ledgers in JSON Lines and CSV: what counts, what is repaired, what is left alone."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve import Answer
from mmserve.caption import (
    Caption,
    LineLedger,
    open_csv,
    open_jsonl,
)
from mmserve.caption.formats import CsvRows, JsonLines
from mmserve.errors import (
    ConfigError,
)
from mmserve.types import Usage
from tests.caption.harness import PICTURES, USAGE, Artist, paint, run, sha


class TestLineLedger:
    def entry(self, file: str = "a.png", caption: str = "A cat.", usage: Usage | None = USAGE) -> Caption:
        return Caption(file, caption, "m", usage, "0" * 64)

    @pytest.mark.parametrize("open_", [open_jsonl, open_csv])
    def test_a_last_line_without_its_end_is_completed(
        self, tmp_path: Path, open_: Callable[[Path], LineLedger]
    ) -> None:
        path = tmp_path / "c"
        with open_(path) as ledger:
            ledger.write(self.entry())
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        with open_(path) as ledger:
            ledger.write(self.entry("b.png"))
        with open_(path) as ledger:
            assert set(ledger.recorded(["a.png", "b.png", "c.png"])) == {"a.png", "b.png"}

    def test_damaged_lines_in_the_middle_stay_and_do_not_count(self, tmp_path: Path) -> None:
        path = tmp_path / "c.jsonl"
        with open_jsonl(path) as ledger:
            for name in "abc":
                ledger.write(self.entry(name))
        lines = path.read_bytes().splitlines(keepends=True)
        damaged = lines[0] + b"\n" + lines[1].replace(b"sha256", b"sha512") + b"{}\n\xff\n[]\nnull\n" + lines[2]
        path.write_bytes(damaged)
        with open_jsonl(path) as ledger:
            assert set(ledger.recorded(["a", "b", "c"])) == {"a", "c"}
        assert path.read_bytes() == damaged

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("file", 3),
            ("caption", None),
            ("model", []),
            ("sha256", "00"),
            ("sha256", "0" * 63 + "G"),
            ("usage", 3),
            ("usage", {}),
        ],
    )
    def test_a_line_with_a_wrong_value_does_not_count(self, key: str, value: object) -> None:
        wire = json.loads(JsonLines().encode(self.entry()))
        with pytest.raises((ValueError, TypeError, LookupError)):
            JsonLines().decode(json.dumps({**wire, key: value}).encode())

    @pytest.mark.parametrize("open_", [open_jsonl, open_csv])
    @pytest.mark.parametrize(
        "content", [b"Dear diary,\n", b"Dear diary", b'{"file_name": "a.png"}\n', b"a,b\n1,2\n", b"\x00" * 99]
    )
    def test_somebody_elses_file_is_not_touched(
        self, tmp_path: Path, open_: Callable[[Path], LineLedger], content: bytes
    ) -> None:
        path = tmp_path / "notes"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="holds something else than captions"):
            open_(path)
        assert path.read_bytes() == content

    @pytest.mark.parametrize("open_", [open_jsonl, open_csv])
    def test_an_empty_file_will_do(self, tmp_path: Path, open_: Callable[[Path], LineLedger]) -> None:
        path = tmp_path / "c"
        path.touch()
        with open_(path) as ledger:
            ledger.write(self.entry())
            assert ledger.recorded(["a.png"]) == {}  # what this run writes is no earlier run's

    @pytest.mark.skipif(sys.platform == "win32", reason="no flock")
    def test_two_runs_on_one_ledger(self, tmp_path: Path) -> None:
        with (
            open_jsonl(tmp_path / "c.jsonl"),
            pytest.raises(ConfigError, match="another run is writing"),
            open_jsonl(tmp_path / "c.jsonl"),
        ):
            pass
        open_jsonl(tmp_path / "c.jsonl").close()

    def test_a_path_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "file" / "c.jsonl"):
            with pytest.raises(ConfigError, match="cannot write"):
                open_jsonl(path)

    def test_closing_twice(self, tmp_path: Path) -> None:
        ledger = open_jsonl(tmp_path / "c.jsonl")
        ledger.close()
        ledger.close()

    texts = st.text(max_size=30)
    usages = st.none() | st.builds(Usage, *[st.integers(0, 2**40)] * 4)

    @given(texts, texts, texts, usages)
    def test_json_round_trip(self, file: str, caption: str, model: str, usage: Usage | None) -> None:
        entry = Caption(file, caption, model, usage, "ab" * 32)
        line = JsonLines().encode(entry)
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert JsonLines().decode(line) == entry

    one_line = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)

    @given(one_line, one_line, one_line, usages)
    def test_csv_round_trip(self, file: str, caption: str, model: str, usage: Usage | None) -> None:
        entry = Caption(file, caption, model, usage, "ab" * 32)
        line = CsvRows().encode(entry)
        assert line.count(b"\n") == 1
        assert CsvRows().decode(line) == entry

    def test_file_names_that_are_not_utf_8(self) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        for form in (JsonLines(), CsvRows()):
            assert form.decode(form.encode(self.entry(name))).file == name


class TestCsv:
    def test_rows(self, tmp_path: Path) -> None:
        class Poet:
            async def ask(self, data: bytes, prompt: str, /) -> Answer:  # noqa: ARG002
                return Answer('Two "lines",\r\nand\ta comma', "stop", USAGE, "m")

        folder, path = paint(tmp_path, {"a, b.png": b"A", "copy.png": b"A"}), tmp_path / "c.csv"
        for _ in range(2):
            with open_csv(path) as ledger:
                run(folder, Poet(), ledger, concurrency=1)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["file"] for row in rows] == ["a, b.png", "copy.png"]
        assert {row["caption"] for row in rows} == {'Two "lines", and\ta comma'}
        assert {row["sha256"] for row in rows} == {sha(b"A")}
        assert [row["prompt_tokens"] for row in rows] == ["90", ""]

    def test_a_file_that_a_spreadsheet_saved_again_counts(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.csv"
        with open_csv(path) as ledger:
            run(folder, Artist(), ledger)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        artist = Artist()
        with open_csv(path) as ledger:
            assert run(folder, artist, ledger).progress.skipped == 4
        assert artist.asked == []

    def test_a_head_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "c.csv"
        open_csv(path).close()
        head = path.read_bytes()
        open_csv(path).close()
        assert path.read_bytes() == head == CsvRows().head
