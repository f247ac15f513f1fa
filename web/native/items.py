"""A body -> what the engine is asked, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mmserve.config import MIB
from mmserve.errors import InvalidField, RequestError
from mmserve.sampling import SamplingParams
from mmserve.types import Prompt, Request
from web.constraints import Wanted, constraint_of, from_sampling_params
from web.native.body import GenerateBody, NativeSampling, parse_sampling
from web.native.pictures import pictures_of
from web.service import Service

MAX_ITEMS = 1024
"""Answers that one body may ask for; each is a request of its own to the engine."""

MAX_HASHED_BYTES = 2 * 1024 * MIB
"""Pictures' bytes over all prompts: a picture is hashed anew for each."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Which log-probabilities are wanted: of the answer, with the ``top`` best at each place, and of the prompt from
    ``start`` on (its length: none of it). ``text`` spells the tokens out."""

    start: int
    top: int
    text: bool


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One answer that is asked for. ``generate`` is ``None`` where only the prompt is to be computed; ``score`` where
    none of its log-probabilities are wanted."""

    rid: str
    names: tuple[str, ...]
    prompt: Prompt
    native: NativeSampling
    wanted: Wanted | None
    logprobs: Logprobs | None
    generate: Request | None
    score: Request | None


def items_of(service: Service, body: GenerateBody, identity: str) -> tuple[list[Item], bool]:
    """What ``body`` asks for, and whether the answer is a list.

    CPU work in proportion to the body and its pictures. Raises typed errors whose ``param`` names the field.
    """
    given, batch = body.prompts
    params = body.sampling_params if isinstance(body.sampling_params, list) else [body.sampling_params] * len(given)
    _same_length(params, given, "sampling_params")
    listed = isinstance(body.sampling_params, list)
    paths = [f"sampling_params[{i}]" if listed else "sampling_params" for i in range(len(given))]
    natives = [parse_sampling(each, path) for each, path in zip(params, paths, strict=True)]
    n = natives[0].n or 1
    if any((native.n or 1) != n for native in natives):
        raise InvalidField("n must be the same for all prompts", param="sampling_params")
    if len(given) * n > MAX_ITEMS:
        raise InvalidField(f"at most {MAX_ITEMS} answers may be asked for at once", param="text")
    pictures = pictures_of(body.image_data, len(given), batch, service.shelf)
    if sum(len(data) for each in pictures for data in each) > MAX_HASHED_BYTES:
        raise InvalidField("so large pictures for so many prompts are too much at once", param="image_data")
    salts = _spread(body.cache_salt, given, "cache_salt", "")
    rids = _rids(body.rid, len(given), n, batch, identity)
    items = []
    for i, native in enumerate(natives):
        prompt = _prompt(service, given[i], pictures[i], salts[i])
        wanted = from_sampling_params(native.constraints(), paths[i])
        logprobs = _logprobs(body, given, i, len(prompt), native.max_new_tokens != 0)
        for k in range(n):
            names = rids[i * n + k]
            one = _Asked(f"{identity}-{i}-{k}", prompt, salts[i], wanted, logprobs)
            items.append(_item(one, names, native, paths[i], service.max_model_len, k))
    return items, batch or n > 1


@dataclass(frozen=True, slots=True)
class _Asked:
    identity: str
    prompt: Prompt
    salt: str
    wanted: Wanted | None
    logprobs: Logprobs | None


def _item(asked: _Asked, names: tuple[str, ...], native: NativeSampling, path: str, context: int, index: int) -> Item:
    prompt, logprobs = asked.prompt, asked.logprobs
    top = None if logprobs is None else logprobs.top
    sampling = native.sampling(path, room=context - len(prompt), logprobs=top)
    if index and sampling.seed is not None:
        sampling = sampling.replace(seed=(sampling.seed + index) % 2**63)  # or all n answers would be the same
    constraint = constraint_of(asked.wanted)
    generate = None
    if native.max_new_tokens != 0:
        generate = Request(asked.identity, prompt, sampling, asked.salt, constraint)
    score = _scoring(asked, sampling, generate is None)
    if generate is None and score is None:
        # A prompt of one token has nothing to score: computing it takes an answer, which is dropped.
        generate = Request(asked.identity, prompt, SamplingParams(max_tokens=1), asked.salt)
    return Item(names[0], names, prompt, native, asked.wanted, logprobs, generate, score)


def _scoring(asked: _Asked, sampling: SamplingParams, alone: bool) -> Request | None:
    """The request that computes the prompt's own log-probabilities, or with ``alone`` at least the prompt."""
    length = len(asked.prompt)
    first = length if asked.logprobs is None else max(asked.logprobs.start, 1)
    if first >= length and not (alone and length > 1):
        return None
    plain = SamplingParams(max_tokens=1, logprobs=sampling.logprobs or 0)
    return Request(f"{asked.identity}-prompt", asked.prompt, plain, asked.salt, score_from=min(first, length - 1))


def _prompt(service: Service, given: str | list[int], pictures: tuple[bytes, ...], salt: str) -> Prompt:
    try:
        if isinstance(given, str):
            return service.prompts.build_text(given, pictures, cache_salt=salt)
        return service.prompts.build_ids(given, pictures, cache_salt=salt)
    except RequestError as error:
        if error.param is None or not error.param.startswith("images"):
            raise
        raise type(error)(error.message, param="image_data") from error


def _logprobs(body: GenerateBody, given: Sequence[Any], index: int, length: int, generates: bool) -> Logprobs | None:
    wanted = _spread(body.return_logprob, given, "return_logprob", False)[index]
    # Where nothing is generated, and it is not said where to begin, all of the prompt is what is left to be wanted.
    start = _spread(body.logprob_start_len, given, "logprob_start_len", -1 if generates else 0)[index]
    top = _spread(body.top_logprobs_num, given, "top_logprobs_num", 0)[index]
    if not wanted:
        return None
    if not -1 <= start <= length:
        raise InvalidField(
            f"logprob_start_len must be between -1 and the prompt's {length} tokens, got {start}",
            param="logprob_start_len",
        )
    return Logprobs(length if start == -1 else start, top, bool(body.return_text_in_logprobs))


def _spread(value: T | list[T] | None, given: Sequence[Any], name: str, default: T) -> list[T]:
    """``value`` for each prompt."""
    if not isinstance(value, list):
        return [default if value is None else value] * len(given)
    _same_length(value, given, name)
    return [default if each is None else each for each in value]


def _same_length(values: Sequence[Any], given: Sequence[Any], name: str) -> None:
    if len(values) != len(given):
        raise InvalidField(f"{name} has {len(values)} entries for {len(given)} prompts", param=name)


def _rids(rid: str | list[str] | None, count: int, n: int, batch: bool, identity: str) -> list[tuple[str, ...]]:
    """Each answer's names, its own first; those of several answers begin with the caller's, as in SGLang."""
    if isinstance(rid, list):
        if len(rid) != count:
            raise InvalidField(f"rid has {len(rid)} entries for {count} prompts", param="rid")
        if len(set(rid)) < count:
            raise InvalidField("two prompts have the same rid", param="rid")
        return [(each,) if n == 1 else (f"{each}_{k}", each) for each in rid for k in range(n)]
    base = rid or identity
    if not batch and n == 1:
        return [(base,)]
    return [(f"{base}_{i}", base) for i in range(count * n)]
