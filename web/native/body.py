"""The body of ``POST /generate``, with SGLang's names and defaults (``GenerateReqInput`` and ``SamplingParams``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mmserve.errors import InvalidField
from mmserve.sampling import SamplingParams
from web.errors import explain
from web.schemas import Texts

DEFAULT_MAX_NEW_TOKENS = 128
_GREEDY_BELOW = 1e-6

_EMPTY: tuple[object, ...] = (None, False, "", [], {})
_REFUSED_FIELDS: Mapping[str, tuple[object, ...]] = {
    # name -> the values that ask for nothing
    **dict.fromkeys(
        (
            *("input_embeds", "video_data", "audio_data", "lora_path", "session_params", "custom_logit_processor"),
            *("return_hidden_states", "return_sampling_mask", "positional_embed_overrides", "token_ids_logprob"),
            *("return_flat_raw_top_logprobs", "return_flat_raw_output_top_logprobs", "watermark", "return_entropy"),
        ),
        _EMPTY,
    )
}
_REFUSED_SAMPLING: Mapping[str, tuple[object, ...]] = {
    "beam_width": (*_EMPTY, 1),
    **dict.fromkeys(("stop_regex", "logit_bias", "custom_params", "watermark"), _EMPTY),
}
_INSTEAD = {
    "token_ids_logprob": "; POST /v1/decisions scores given answers",
    "video_data": ": this route takes no videos, and POST /v1/chat/completions takes them as video_url",
    "audio_data": ": this route takes no sounds, and POST /v1/chat/completions takes them as audio_url or input_audio",
}


def _refuse(extra: Mapping[str, Any] | None, refused: Mapping[str, tuple[object, ...]], prefix: str = "") -> None:
    for name, value in (extra or {}).items():
        if name in refused and value not in refused[name]:
            raise InvalidField(
                f"{prefix}{name} is not supported here; leave it out{_INSTEAD.get(name, '')}", param=f"{prefix}{name}"
            )


class NativeSampling(BaseModel):
    """One prompt's ``sampling_params``. The constraint in them is read by ``web.constraints.from_sampling_params``."""

    model_config = ConfigDict(extra="allow")

    max_new_tokens: int | None = Field(
        DEFAULT_MAX_NEW_TOKENS, ge=0, description="0 computes the prompt only; null is what the context has room for."
    )
    min_new_tokens: int | None = None
    stop: Texts | None = None
    stop_token_ids: list[int] | None = None
    temperature: float | None = Field(None, description="0 is greedy; 1 by default.")
    top_p: float | None = None
    top_k: int | None = Field(None, description="-1 is no limit.")
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    sampling_seed: int | None = None
    seed: int | None = Field(None, description="The same as sampling_seed.")
    n: int | None = Field(None, ge=1, le=16)
    regex: str | None = None
    ebnf: str | None = None
    json_schema: dict[str, Any] | bool | str | None = None
    structural_tag: dict[str, Any] | str | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = Field(None, description="Has no effect on a byte-level vocabulary.")
    no_stop_trim: bool | None = None

    def refuse_unsupported(self, path: str) -> None:
        """Raises ``InvalidField`` for a field whose silent loss would change the answer."""
        _refuse(self.model_extra, _REFUSED_SAMPLING, f"{path}.")

    def constraints(self) -> dict[str, Any]:
        """The constraining fields. SGLang's clients send an empty one for none."""
        return {name: getattr(self, name) or None for name in ("regex", "ebnf", "json_schema", "structural_tag")}

    def sampling(self, path: str, *, room: int, logprobs: int | None) -> SamplingParams:
        """For a prompt that leaves ``room`` tokens of the context, to which SGLang cuts ``max_new_tokens``.

        Raises ``InvalidField`` with SGLang's name of the field.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = self.seed if self.sampling_seed is None else self.sampling_seed
        said: dict[str, Any] = {
            "max_tokens": None if self.max_new_tokens is None else max(1, min(self.max_new_tokens, room)),
            "min_tokens": self.min_new_tokens,
            "temperature": 0.0 if 0 <= temperature < _GREEDY_BELOW else temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
            "skip_special_tokens": self.skip_special_tokens,
            "seed": seed,
            "stop": tuple(self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
        }
        try:
            if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
                raise InvalidField("min_tokens is larger than max_tokens", param="min_tokens")
            if said["max_tokens"] is not None and self.min_new_tokens is not None:
                said["min_tokens"] = min(self.min_new_tokens, said["max_tokens"])
            given = {name: value for name, value in said.items() if value is not None}
            return SamplingParams(logprobs=logprobs, **given)
        except InvalidField as error:
            raise native_error(error, path) from None


_NATIVE_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}


def native_error(error: InvalidField, path: str) -> InvalidField:
    """``error`` about a field of ``SamplingParams``, in SGLang's names and with its place in the body."""
    if error.param == "logprobs":
        return InvalidField(error.message.replace("logprobs", "top_logprobs_num"), param="top_logprobs_num")
    message = error.message
    for ours, theirs in _NATIVE_NAMES.items():
        message = message.replace(ours, theirs)
    name = _NATIVE_NAMES.get(error.param or "", error.param)
    return InvalidField(message, param=f"{path}.{name}" if name else path)


def _as_given(value: object) -> object:
    return {} if value is None else value


class GenerateBody(BaseModel):
    """Unknown fields are kept in ``model_extra``. With a list of prompts, most fields may be lists as well."""

    model_config = ConfigDict(extra="allow")

    text: str | list[str] | None = Field(
        None, description="The prompt, or a list. Special tokens in it are special tokens: no chat template is applied."
    )
    input_ids: list[int] | list[list[int]] | None = None
    image_data: Any = Field(
        None, description="A data URI or base64; a list of them; for a list of prompts, a list with an entry for each."
    )
    sampling_params: Annotated[dict[str, Any] | list[dict[str, Any]], BeforeValidator(_as_given)] = Field(
        default_factory=dict
    )
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = Field(
        None, description="Where the prompt's log-probabilities begin; -1 is none of it, and the default."
    )
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    rid: str | list[str] | None = Field(None, description="Names the request for POST /abort_request.")
    cache_salt: str | list[str] | None = None

    @classmethod
    def parse(cls, data: bytes) -> GenerateBody:
        """Raises ``InvalidField``."""
        try:
            body = cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            # Pydantic puts the name of a union's member between a field and what is wrong with it.
            raise explain([{**e, "loc": _own_path(e["loc"])} for e in found]) from None
        _refuse(body.model_extra, _REFUSED_FIELDS)
        if (body.text is None) == (body.input_ids is None):
            raise InvalidField("send either text or input_ids", param="text")
        return body

    def unknown_fields(self) -> list[str]:
        """Fields that have no meaning here and are ignored."""
        return [name for name in self.model_extra or {} if name not in _REFUSED_FIELDS]

    @property
    def prompts(self) -> tuple[list[str] | list[list[int]], bool]:
        """The prompts, and whether they were sent as a list. Raises ``InvalidField`` where there is none."""
        if self.text is not None:
            return ([self.text], False) if isinstance(self.text, str) else (self._some(self.text, "text"), True)
        assert self.input_ids is not None
        ids = self._some(self.input_ids, "input_ids")
        return (ids, True) if isinstance(ids[0], list) else ([ids], False)

    @staticmethod
    def _some(values: list[Any], name: str) -> list[Any]:
        if not values:
            raise InvalidField(f"{name} is empty; send a prompt", param=name)
        return values


def _own_path(location: tuple[int | str, ...]) -> list[int | str]:
    return [step for step in location if isinstance(step, int) or step in GenerateBody.model_fields]


def parse_sampling(params: Mapping[str, Any], path: str) -> NativeSampling:
    """One prompt's ``sampling_params``; ``path`` is its place in the body. Raises ``InvalidField``."""
    try:
        sampling = NativeSampling.model_validate(params, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        steps = [{**e, "loc": (path, *e["loc"][:1])} for e in found]
        raise explain(steps) from None
    sampling.refuse_unsupported(path)
    return sampling
