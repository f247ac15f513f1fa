"""CogVLM and CogVLM2 once more, as plainly as can be: what mmserve's are held against, since transformers lacks them.

Written from the papers (arXiv 2311.03079, 2408.16500) and from what the published code does with a prompt. One
conversation at a time, the whole of it anew for each token, attention written out; nothing of mmserve or vision.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torchvision import transforms

from tests.reference import Expected

TEXT, PICTURE = 0, 1
History = Sequence[tuple[str, str]]


class CogReference:
    """A checkpoint folder in float32."""

    def __init__(self, path: Path, tokenizer: Path | None = None) -> None:
        self.config = json.loads((path / "config.json").read_text())
        self.weights = load_file(path / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str((tokenizer or path) / "tokenizer.json"))
        self.second = "num_multi_query_heads" in self.config

    def prompt(self, pictures: int, question: str, history: History = ()) -> tuple[list[int], list[int]]:
        """Token ids and kinds of a conversation: the start token, the picture, then all text as one."""
        if pictures > 1:
            raise ValueError("one picture a conversation")
        version = self.config["template_version"]
        asks = {"chat": " Answer:", "vqa": " Short answer:"}
        text = question
        if version != "base":
            turns = [f"Question: {asked}{asks[version]} {answer}\n" for asked, answer in history]
            text = "".join(turns) + f"Question: {question}{asks[version]}"
        said = self.tokenizer.encode(text, add_special_tokens=False).ids
        rows = pictures * self._rows()
        ids = [self.config["bos_token_id"]] + [self.config["pad_token_id"]] * rows + said
        return ids, [TEXT] + [PICTURE] * rows + [TEXT] * len(said)

    @torch.inference_mode()
    def answer(
        self, pictures: Sequence[Image.Image], question: str, max_tokens: int, *, to_the_end: bool = False
    ) -> Expected:
        assert to_the_end, "this one never stops by itself"
        return self.conversation(pictures, question, max_tokens)

    @torch.inference_mode()
    def conversation(
        self, pictures: Sequence[Image.Image], question: str, max_tokens: int, history: History = ()
    ) -> Expected:
        ids, kinds = self.prompt(len(pictures), question, history)
        length, leads = len(ids), []
        rows = self.encode(pictures[0]) if pictures else None
        for _ in range(max_tokens):
            best = self.logits(ids, kinds, rows)[-1].topk(2)
            leads.append(float(best.values[0] - best.values[1]))
            ids, kinds = [*ids, int(best.indices[0])], [*kinds, TEXT]
        return Expected(ids[:length], ids[length:], leads)

    def encode(self, picture: Image.Image) -> Tensor:
        """A picture's rows ``(rows, hidden_size)``, the learned ones at both ends among them."""
        vision = self.config["vision_config"]
        size = (vision["image_size"], vision["image_size"])
        prepare = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
            ]
        )
        pixels, patch = prepare(picture.convert("RGB")), vision["patch_size"]
        side = vision["image_size"] // patch
        # Each patch as one long vector, times the convolution's kernel as a matrix.
        patches = torch.stack(
            [
                pixels[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].flatten()
                for y in range(side)
                for x in range(side)
            ]
        )
        x = patches @ self._weight("vision.patch_embedding.proj").flatten(1).T
        x = x + self._weight("vision.patch_embedding.proj", "bias")
        x = torch.cat((self.weights["model.vision.patch_embedding.cls_embedding"], x))
        x = x + self._weight("vision.patch_embedding.position_embedding")
        for i in range(vision["num_hidden_layers"]):
            x = self._tower_layer(f"vision.transformer.layers.{i}", x)
        x = x[1:]
        if self.second:
            x = self._joined(x.view(side, side, -1))
        return torch.cat((self.weights["model.vision.boi"][0], self._adapter(x), self.weights["model.vision.eoi"][0]))

    def logits(self, ids: Sequence[int], kinds: Sequence[int], rows: Tensor | None) -> Tensor:
        """``(tokens, vocabulary)``."""
        x = self._weight("embed_tokens")[torch.tensor(ids)]
        if rows is not None:
            x[torch.tensor(kinds) == PICTURE] = rows
        positions = torch.tensor(positions_of(kinds))
        visual = torch.tensor(takes_expert(kinds))
        for i in range(self.config["num_hidden_layers"]):
            name = f"layers.{i}"
            x = x + self._attention(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x), positions, visual)
            normed = self._norm(f"{name}.post_attention_layernorm", x)
            of_pictures, of_text = (self._feed(f"{name}.mlp.{kind}_mlp", normed) for kind in ("vision", "language"))
            x = x + torch.where(visual[:, None], of_pictures, of_text)
        return self._norm("norm", x) @ self.weights["lm_head.weight"].T

    def _rows(self) -> int:
        side = self.config["vision_config"]["image_size"] // self.config["vision_config"]["patch_size"]
        return int((side // 2) ** 2 if self.second else side**2) + 2

    def _weight(self, name: str, part: str = "weight") -> Tensor:
        return self.weights[f"model.{name}.{part}"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias: Tensor | None = self.weights.get(f"model.{name}.bias")
        out: Tensor = x @ self._weight(name).T
        return out if bias is None else out + bias

    def _norm(self, name: str, x: Tensor) -> Tensor:
        eps = self.config["rms_norm_eps"]
        out: Tensor = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self._weight(name)
        return out

    def _layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self._weight(name) + self._weight(
            name, "bias"
        )

    def _tower_layer(self, name: str, x: Tensor) -> Tensor:
        vision = self.config["vision_config"]
        heads, eps = vision["num_heads"], vision["layer_norm_eps"]
        q, k, v = torch.split(self._linear(f"{name}.attention.query_key_value", x), x.shape[1], 1)
        results = []
        for one_q, one_k, one_v in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            scores = one_q @ one_k.T / math.sqrt(one_q.shape[1])
            results.append(scores.softmax(-1) @ one_v)
        attended = self._linear(f"{name}.attention.dense", torch.cat(results, 1))
        x = x + self._layer_norm(f"{name}.input_layernorm", attended, eps)
        inner = self._linear(f"{name}.mlp.fc1", x)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return x + self._layer_norm(f"{name}.post_attention_layernorm", self._linear(f"{name}.mlp.fc2", inner), eps)

    def _joined(self, square: Tensor) -> Tensor:
        """Four neighbours become one: ``(side, side, C)`` to ``(side * side / 4, C)``."""
        kernel, bias = self._weight("vision.conv"), self._weight("vision.conv", "bias")
        corners = [(square[y::2, x::2] @ kernel[:, :, y, x].T) for y in (0, 1) for x in (0, 1)]
        return (sum(corners[1:], corners[0]) + bias).flatten(0, 1)

    def _adapter(self, x: Tensor) -> Tensor:
        name = "vision.linear_proj"
        x = self._layer_norm(f"{name}.norm1", self._linear(f"{name}.linear_proj", x), 1e-5)
        x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        gate = self._linear(f"{name}.gate_proj", x)
        return self._linear(f"{name}.dense_4h_to_h", gate * gate.sigmoid() * self._linear(f"{name}.dense_h_to_4h", x))

    def _feed(self, name: str, x: Tensor) -> Tensor:
        gate = self._linear(f"{name}.gate_proj", x)
        return self._linear(f"{name}.down_proj", gate * gate.sigmoid() * self._linear(f"{name}.up_proj", x))

    def _attention(self, name: str, x: Tensor, positions: Tensor, visual: Tensor) -> Tensor:
        heads = self.config["num_attention_heads"]
        shared = heads // self.config.get("num_multi_query_heads", heads)
        width, head = x.shape[1], x.shape[1] // heads
        of_pictures, of_text = (
            self._linear(f"{name}.{kind}_expert_query_key_value", x) for kind in ("vision", "language")
        )
        merged = torch.where(visual[:, None], of_pictures, of_text)
        q, k, v = torch.split(merged, [width, width // shared, width // shared], 1)
        hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        results = []
        for i in range(heads):
            one_q = self._turned(q[:, i * head : (i + 1) * head], positions)
            at = slice(i // shared * head, (i // shared + 1) * head)
            scores = one_q @ self._turned(k[:, at], positions).T / math.sqrt(head)
            results.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, at])
        out = torch.cat(results, 1)
        of_pictures, of_text = (self._linear(f"{name}.{kind}_expert_dense", out) for kind in ("vision", "language"))
        return torch.where(visual[:, None], of_pictures, of_text)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Each pair ``(x[j], x[j + D / 2])`` turned as a complex number."""
        base, half = (500_000 if self.second else 10_000), x.shape[1] // 2
        angles = positions[:, None] * base ** (-torch.arange(half) / half)
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), 1)


def positions_of(kinds: Sequence[int]) -> list[int]:
    """A picture's first and last token count as text; between them, only the first counts."""
    counted = list(kinds)
    for i, kind in enumerate(kinds):
        neighbours = (kinds[i - 1] if i else TEXT, kinds[i + 1] if i + 1 < len(kinds) else TEXT)
        if kind == PICTURE and TEXT in neighbours:
            counted[i] = TEXT
    positions = [0]
    for before, kind in itertools.pairwise(counted):
        positions.append(positions[-1] + (not before == kind == PICTURE))
    return positions


def takes_expert(kinds: Sequence[int]) -> list[bool]:
    """The visual expert takes a picture's token that another one follows."""
    return [one == other == PICTURE for one, other in zip(kinds, [*kinds[1:], TEXT], strict=True)]
