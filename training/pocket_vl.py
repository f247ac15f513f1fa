"""The whole recipe in one command: data, tokenizer, training, evaluation, model card.

python -m training.pocket_vl --out DIR
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import Qwen2VLForConditionalGeneration

from training import card, evaluate
from training.conversations import Author, Conversation, Kind, segments
from training.data import VqaSplit, find_root, load_split
from training.model import make_model
from training.pool import make_pool
from training.tokenizer import save_image_processor, save_tokenizer, train_bpe
from training.train import TrainConfig, Trainer

HELD_OUT = 100
MODEL_SEED = 20_260
AUTHOR_SEED = 7
RESULTS = "results.json"


COUNTS: Mapping[Kind, int] = {"one": 160_000, "two": 60_000, "text": 6_000, "long": 16_000}


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    root = find_root(arguments.data)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.evaluate_only:
        train(load_split(root, "train"), device, arguments)
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
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--step-cost", type=int, default=TrainConfig.step_cost, help="patches and tokens of a step")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the conversations to write, for a trial")
    parser.add_argument("--questions", type=int, help="evaluate on so many questions a suite, for a trial")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true", help="evaluate the checkpoint that --out holds")
    return parser.parse_args()


def train(split: VqaSplit, device: torch.device, arguments: argparse.Namespace) -> None:
    """Trains and leaves the checkpoint, in bf16, in ``--out``."""
    out, work = arguments.out, arguments.work or arguments.out
    work.mkdir(parents=True, exist_ok=True)
    conversations = write_conversations(split, arguments.scale)
    tokenizer = save_tokenizer(train_bpe(plain_texts(conversations.values())), out)
    save_image_processor(out)
    config = TrainConfig(steps=arguments.steps, step_cost=arguments.step_cost)
    pools = {kind: make_pool(rows, tokenizer) for kind, rows in conversations.items()}
    pictures = torch.from_numpy(split.pictures).permute(0, 3, 1, 2).contiguous()
    trained = Trainer(make_model(MODEL_SEED), config, pools, pictures, device).run(work / "state.pt")
    save_model(trained, out)


def write_conversations(split: VqaSplit, scale: float = 1.0) -> dict[str, list[Conversation]]:
    """All training text by kind. The last pictures of the training split are kept back for validation."""
    count = len(split.pictures)
    held_out = frozenset(range(count - HELD_OUT, count))
    author = Author(split, held_out, AUTHOR_SEED)
    validator = Author(split, frozenset(range(count)) - held_out, AUTHOR_SEED)
    conversations = {"original": list(author.originals()), "validation": list(validator.originals())}
    for kind, number in COUNTS.items():
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
