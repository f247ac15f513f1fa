"""The whole recipe in one command: data, tokenizer, training, evaluation, model card.

python -m training.pocket_vl --out DIR
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration

from training import card, evaluate
from training.conversations import Author, Conversation, Kind, segments
from training.data import VqaSplit, find_root, load_split
from training.model import load_model, make_model
from training.pool import make_pool
from training.tokenizer import save_image_processor, save_tokenizer, train_bpe
from training.train import TrainConfig, Trainer

HELD_OUT = 100
MODEL_SEED = 20_260
RESULTS = "results.json"


@dataclass(frozen=True)
class Stage:
    """What a stage learns from and how. ``counts`` is the number of conversations that the recipe writes itself."""

    counts: Mapping[Kind, int]
    config: TrainConfig
    author_seed: int


FIRST = Stage(
    counts={"one": 160_000, "two": 60_000, "text": 6_000, "long": 16_000},
    config=TrainConfig(
        steps=6400,
        warmup=300,
        peak_rate=1.2e-3,
        seed=20_260,
        mix=(("original", 0.42), ("one", 0.34), ("two", 0.15), ("text", 0.02), ("long", 0.07)),
    ),
    author_seed=7,
)

# Where a shape lies and whether two are alike are learnt late: this stage asks for little else.
SECOND = Stage(
    counts={"one": 20_000, "two": 8_000, "text": 2_000, "long": 3_000, "where": 40_000, "same": 16_000},
    config=TrainConfig(
        steps=1000,
        warmup=50,
        peak_rate=8e-4,
        seed=20_261,
        mix=(
            ("where", 0.45), ("same", 0.18), ("original", 0.14), ("one", 0.1), ("two", 0.06), ("long", 0.05),
            ("text", 0.02),
        ),
    ),
    author_seed=8,
)  # fmt: skip

STAGES = (FIRST, SECOND)


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    root = find_root(arguments.data)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.evaluate_only:
        split = load_split(root, "train")
        for number in range(arguments.stage, len(STAGES) + 1):
            train_stage(number, split, device, arguments)
    if not arguments.train_only:
        results = evaluate.evaluate(out, root, device, arguments.questions)
        (out / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (out / "README.md").write_text(card.write(results), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--data", type=Path, help="easy-vqa's data folder; default: that of the installed package")
    parser.add_argument("--work", type=Path, help="where the resumable training state goes; default: --out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stage", type=int, default=1, choices=(1, 2), help="2 goes on from the checkpoint in --out")
    parser.add_argument("--steps", type=int, help="steps of a stage, for a trial")
    parser.add_argument("--step-cost", type=int, help="patches and tokens of a step")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the conversations to write, for a trial")
    parser.add_argument("--questions", type=int, help="evaluate on so many questions a suite, for a trial")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true", help="evaluate the checkpoint that --out holds")
    return parser.parse_args()


def train_stage(number: int, split: VqaSplit, device: torch.device, arguments: argparse.Namespace) -> None:
    """Runs one stage and leaves its checkpoint, in bf16, in ``--out``."""
    stage, out = STAGES[number - 1], arguments.out
    work = arguments.work or out
    work.mkdir(parents=True, exist_ok=True)
    conversations = write_conversations(split, stage, arguments.scale)
    if number == 1:
        tokenizer = save_tokenizer(train_bpe(plain_texts(conversations.values())), out)
        save_image_processor(out)
        model = make_model(MODEL_SEED)
    else:
        tokenizer, model = Qwen2Tokenizer.from_pretrained(out), load_model(out)
    config = replace(
        stage.config,
        steps=arguments.steps or stage.config.steps,
        step_cost=arguments.step_cost or stage.config.step_cost,
    )
    pools = {kind: make_pool(rows, tokenizer) for kind, rows in conversations.items()}
    pictures = torch.from_numpy(split.pictures).permute(0, 3, 1, 2).contiguous()
    trained = Trainer(model, config, pools, pictures, device).run(work / f"state-{number}.pt")
    save_model(trained, out)


def write_conversations(split: VqaSplit, stage: Stage, scale: float = 1.0) -> dict[str, list[Conversation]]:
    """A stage's text by kind. The last pictures of the training split are kept back for validation."""
    count = len(split.pictures)
    held_out = frozenset(range(count - HELD_OUT, count))
    author = Author(split, held_out, stage.author_seed)
    validator = Author(split, frozenset(range(count)) - held_out, stage.author_seed)
    conversations = {"original": list(author.originals()), "validation": list(validator.originals())}
    for kind, number in stage.counts.items():
        conversations[kind] = list(author.write(kind, max(1, int(number * scale))))
    return conversations


def plain_texts(groups: Iterable[Iterable[Conversation]]) -> list[str]:
    """The distinct pieces of text between special tokens, sorted so that the merges do not depend on hashing."""
    pieces = {text for group in groups for conversation in group for text, _ in segments(conversation)}
    return sorted({part for piece in pieces for part in re.split(r"<\|[a-z_]+\|>", piece) if part})


def save_model(model: Qwen2VLForConditionalGeneration, out: Path) -> None:
    """Writes weights and configuration in bf16, from a fresh model: a loaded one remembers its float32."""
    fresh = make_model(MODEL_SEED)
    fresh.load_state_dict(model.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
