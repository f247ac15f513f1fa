"""The training loop: AdamW, linear warm-up, cosine decay; every step one kind of conversation and one picture size."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from transformers import Qwen2VLForConditionalGeneration

from training import pictures
from training.model import MERGE, PATCH, encode_pictures, predict
from training.pictures import Renderer, Size
from training.pool import Pool, expand

Kind = str


@dataclass(frozen=True)
class TrainConfig:
    """``step_cost`` bounds patches plus tokens of a step, so that steps cost about the same at any picture size."""

    steps: int = 6400
    warmup: int = 300
    peak_rate: float = 1.2e-3
    seed: int = 20_260
    mix: tuple[tuple[Kind, float], ...] = (
        ("original", 0.42), ("one", 0.34), ("two", 0.15), ("text", 0.02), ("long", 0.07),
    )  # fmt: skip
    step_cost: int = 96_000
    max_rows: int = 640
    weight_decay: float = 0.05
    log_every: int = 100
    save_seconds: float = 60.0


class Trainer:
    """Owns the model, the optimizer and every random state, so that a saved run goes on where it stopped."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        config: TrainConfig,
        pools: dict[Kind, Pool],
        train_pictures: Tensor,
        device: torch.device,
    ) -> None:
        """``train_pictures`` is uint8 ``[n, 3, 64, 64]``; ``pools`` has every kind of the mix, and ``validation``."""
        self.model = model.to(device)
        self.step = 0
        self._config = config
        self._device = device
        self._pools = {kind: pool.to(device) for kind, pool in pools.items()}
        self._random = Random(config.seed)
        self._generator = Generator(device).manual_seed(config.seed)
        self._renderer = Renderer(train_pictures.to(device), self._generator)
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay),
            lr=config.peak_rate,
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
        )

    def run(self, state_file: Path) -> Qwen2VLForConditionalGeneration:
        """Trains to the last step; saves its state now and then, and resumes from it if it is there."""
        if state_file.exists():
            self._load(state_file)
        # cuDNN's attention plans anew for every length, which costs more than it saves here, and was seen to give NaN.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.model.train()
        saved = began = time.monotonic()
        sums, first, reported = torch.zeros(2, device=self._device), self.step, self.step
        while self.step < self._config.steps:
            sums += self._advance()
            self.step += 1
            if self.step % self._config.log_every == 0:
                rate = (self.step - first) / (time.monotonic() - began)
                self._report(sums / (self.step - reported), rate)
                sums.zero_()
                reported = self.step
            if time.monotonic() - saved > self._config.save_seconds:
                self._save(state_file)
                saved = time.monotonic()
        self._save(state_file)
        return self.model.eval()

    def _report(self, means: Tensor, rate: float) -> None:
        loss, right = means.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.step}")
        line = f"step {self.step}  loss {loss:.4f}  tokens right {right:.4f}  {rate:.1f} steps/s"
        if self.step % (10 * self._config.log_every) == 0:
            line += f"  held-out answers right {self.validate():.4f}"
        print(line, flush=True)

    def _advance(self) -> Tensor:
        """One optimizer step; returns its loss and the share of answer tokens that were right, on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config, self.step)
        pool, sizes = self._choose()
        batch = pool.take(self._draw_rows(pool, sizes))
        images = [self._renderer.render(batch.scenes[:, slot], size) for slot, size in enumerate(sizes)]
        logits, targets, _ = self._answer(batch, images)
        loss = F.cross_entropy(logits, targets)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        right = (logits.detach().argmax(-1) == targets).float().mean()
        return torch.stack((loss.detach(), right))

    def _choose(self) -> tuple[Pool, list[Size]]:
        kinds, weights = zip(*self._config.mix, strict=True)
        pool = self._pools[self._random.choices(kinds, weights)[0]]
        sizes = [pictures.choose_size([self._random.random() for _ in range(3)]) for _ in range(pool.slots)]
        return pool, sizes

    def _draw_rows(self, pool: Pool, sizes: list[Size]) -> Tensor:
        """Random rows, as many as the cost of a step allows."""
        patches = sum(pictures.patch_count(size) for size in sizes)
        cost = patches * (1 + 1 / MERGE**2) + pool.mean_length
        count = max(8, min(self._config.max_rows, int(self._config.step_cost / cost)))
        return torch.randint(len(pool), (count,), generator=self._generator, device=self._device)

    def _answer(self, pool: Pool, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[tokens, vocab]`` and targets of the learnt tokens, and the mask ``[batch, length]`` they fill."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            seen = [self._see(image) for image in images]
            batch = expand(pool, [_token_grid(image) for image in images])
            hidden = predict(self.model, batch.ids, batch.positions, seen)
            mask = batch.learnt[:, 1:]
            logits = self.model.lm_head(hidden[:, :-1][mask])
        return logits.float(), batch.ids[:, 1:][mask], mask

    def _see(self, image: Tensor) -> Tensor:
        height, width = _token_grid(image)
        grid = (height * MERGE, width * MERGE)
        return encode_pictures(self.model.model.visual, pictures.patches(image), grid)

    @torch.no_grad()
    def validate(self) -> float:
        """The share of held-out training questions whose whole answer would be right."""
        self.model.eval()
        pool, right = self._pools["validation"], 0
        for rows in torch.split(torch.arange(len(pool), device=self._device), self._config.max_rows):
            batch = pool.take(rows)
            logits, targets, mask = self._answer(batch, [self._renderer.render_plain(batch.scenes[:, 0])])
            wrong = torch.zeros(mask.shape, dtype=torch.bool, device=self._device)
            wrong[mask] = logits.argmax(-1) != targets
            right += int((~wrong.any(1)).sum())
        self.model.train()
        return right / len(pool)

    def _save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "random": self._random.getstate(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear to the peak, then a cosine to zero."""
    if step < config.warmup:
        return config.peak_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


def _token_grid(image: Tensor) -> Size:
    height, width = pictures.target_size((image.shape[2], image.shape[3]))
    return height // PATCH // MERGE, width // PATCH // MERGE


def _parameter_groups(model: Qwen2VLForConditionalGeneration, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
