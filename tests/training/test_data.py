"""The recipe's data: labels inferred from questions, and a training half that never opens the test split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from training import data
from training.data import COLORS, SHAPES, Question, VqaSplit, infer_labels, load_split
from training.pocket_vl import HELD_OUT, write_conversations
from training.questions import DRAWN

INKS = {
    (0, 0, 0): "black", (0, 0, 255): "blue", (165, 42, 42): "brown", (128, 128, 128): "gray",
    (0, 255, 0): "green", (255, 0, 0): "red", (0, 128, 128): "teal", (255, 255, 0): "yellow",
}  # fmt: skip


def test_training_reads_no_file_of_the_test_split(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").symlink_to(data_root / "train", target_is_directory=True)
    opened: list[Path] = []
    read = data.read_picture

    def noting(path: Path) -> object:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(data, "read_picture", noting)

    split = load_split(tmp_path, "train")
    conversations = write_conversations(split, scale=0.001)

    assert len(opened) == 4000
    assert all(path.parts[-3] == "train" for path in opened)
    shown = {scene.picture for group in conversations.values() for c in group for scene in c.scenes}
    assert shown <= {DRAWN, *range(4000)}


def test_held_out_pictures_are_only_in_the_validation_rows(train_split: VqaSplit) -> None:
    conversations = write_conversations(train_split, scale=0.002)
    validation = {scene.picture for c in conversations.pop("validation") for scene in c.scenes}
    training = {scene.picture for group in conversations.values() for c in group for scene in c.scenes}

    assert validation == set(range(4000 - HELD_OUT, 4000))
    assert not validation & training


def test_every_training_question_is_learnt_word_for_word(train_split: VqaSplit) -> None:
    conversations = write_conversations(train_split, scale=0.001)
    rows = [*conversations["original"], *conversations["validation"]]
    learnt = {(c.turns[0].parts[1], c.turns[0].answer, c.scenes[0].picture) for c in rows}

    assert len(rows) == 38_575
    assert learnt == {tuple(question) for question in train_split.questions}


def test_inferred_colors_are_those_of_the_pixels(train_split: VqaSplit) -> None:
    for picture, label in list(train_split.labels.items())[:400]:
        pixels = {(int(r), int(g), int(b)) for r, g, b in train_split.pictures[picture].reshape(-1, 3)}
        assert {INKS[pixel] for pixel in pixels & set(INKS)} == {COLORS[label.color]}


def test_labels_follow_from_denials() -> None:
    questions = [
        Question("is there a circle?", "no", 0),
        Question("is there not a triangle?", "yes", 0),
        Question("is no red shape present?", "no", 0),
        Question("what color is the shape?", "red", 1),
    ]

    labels = infer_labels(questions)

    assert set(labels) == {0}
    assert (SHAPES[labels[0].shape], COLORS[labels[0].color]) == ("rectangle", "red")


def test_another_version_of_the_data_is_refused(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "train").mkdir()
    shutil.copy(data_root / "test" / "questions.json", tmp_path / "train")

    with pytest.raises(ValueError, match="sha256"):
        load_split(tmp_path, "train")


def test_pictures_are_rgb(train_split: VqaSplit) -> None:
    assert train_split.pictures.shape == (4000, 64, 64, 3)
    assert train_split.pictures.dtype == np.uint8
