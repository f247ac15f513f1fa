"""What programs are written with: ``gen``, ``select``, ``image``, ``video``, ``audio`` and the roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmserve.errors import InvalidConstraint, InvalidField
from mmserve.lang.calls import Options, Watched
from mmserve.lang.errors import calling_place
from mmserve.lang.expressions import (
    ROLES,
    Audio,
    Begin,
    End,
    Expr,
    ExprLike,
    Gen,
    Image,
    Select,
    Turned,
    Video,
    as_expr,
)
from mmserve.lang.pictures import picture_source, sound_source, video_source

if TYPE_CHECKING:
    import re

    from mmserve.client.pictures import PictureLike
    from mmserve.client.sounds import SoundLike
    from mmserve.client.videos import VideoLike
    from mmserve.grammar.spec import Constraint
    from mmserve.types import Detail

INTEGER = r"-?(0|[1-9][0-9]{0,17})"
QUOTED = r'"[^"\\\n]*"'


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    min_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    repetition_penalty: float | None = None,
    ignore_eos: bool | None = None,
    seed: int | None = None,
    return_logprob: bool | None = None,
    top_logprobs_num: int | None = None,
    dtype: type[int] | type[str] | None = None,
    choices: Sequence[str] | None = None,
    regex: str | re.Pattern[str] | Mapping[str, Any] | type | None = None,
    json_schema: str | Mapping[str, Any] | type | None = None,
    ebnf: str | None = None,
) -> Expr:
    """Text that the model writes, read as ``s[name]``.

    ``max_tokens`` is 128 where nothing is said, or what is left of the context where the text has a form to keep: so
    such a text is always whole. ``regex`` is a pattern that the whole text matches, or, like ``json_schema``, a JSON
    Schema as a dict or JSON text, or a pydantic model or other type that pydantic knows. ``ebnf`` is a grammar in EBNF
    (GBNF) or Lark. ``choices`` is :func:`select`. ``dtype`` int or str asks for a whole number or a quoted string.
    ``return_logprob`` keeps the tokens' log-probabilities, and ``top_logprobs_num`` alternatives of each, in
    ``s.get_meta_info(name)``. ``temperature`` 0 is greedy; what is left out is as the run, then the backend, has it.

    Raises ``InvalidConstraint`` for a form that is none, or more than one.
    """
    place = calling_place(_label("gen", name))
    forms = {"dtype": dtype, "choices": choices, "regex": regex, "json_schema": json_schema, "ebnf": ebnf}
    given = [form for form, value in forms.items() if value is not None]
    if len(given) > 1:
        raise InvalidConstraint(f"one text can have one form, and these are given: {', '.join(given)}", param=given[1])
    if choices is not None:
        return Select(name, _choices(choices), temperature or 0.0, seed, place)
    options = Options(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        stop=texts_of(stop),
        stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
        seed=seed,
        ignore_eos=ignore_eos,
        logprobs=(top_logprobs_num or 0) if return_logprob or top_logprobs_num else None,
    )
    return Gen(name, options, _constraint(dtype, regex, json_schema, ebnf), place)


def gen_int(name: str | None = None, **options: Any) -> Expr:
    """A whole number, as text; ``options`` are those of :func:`gen`."""
    return gen(name, dtype=int, **options)


def gen_string(name: str | None = None, **options: Any) -> Expr:
    """A string in double quotes, quotes included; ``options`` are those of :func:`gen`."""
    return gen(name, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    *,
    seed: int | None = None,
) -> Expr:
    """One of ``choices``, by how likely the model finds each.

    The likeliest is taken, or with a ``temperature`` one is drawn (repeatably with a ``seed``). All probabilities are
    in ``s.get_meta_info(name)["probabilities"]``. A choice that ends its turn counts with that end, so that "cat" is
    not helped by "catfish".
    """
    return Select(name, _choices(choices), temperature, seed, calling_place(_label("select", name)))


def image(
    picture: PictureLike, *, detail: str = "auto", min_pixels: int | None = None, max_pixels: int | None = None
) -> Expr:
    """A picture: a path, the bytes of a file, a PIL image, an array (height x width [x channels], uint8), a data URI,
    or an address (``https://…``), which is fetched by this process.

    ``detail`` (``"auto"``, ``"low"`` or ``"high"``) and the limits in pixels say how closely the model looks, where its
    family can choose.

    Raises OSError for a file that cannot be read, TypeError for what is no picture, ``InvalidField`` for limits out of
    range (those of the model are known to the generations that need the picture, and fail them); an address that
    cannot be fetched fails the generations that need it.
    """
    return Image(picture_source(picture), calling_place("image"), _detail(detail, min_pixels, max_pixels))


def video(
    source: VideoLike,
    num_frames: int | None = None,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
) -> Expr:
    """A video: a path, the bytes of a file, a file object, a data URI, or an address (``https://…``), which is fetched
    by this process. For models that take videos.

    The model sees ``num_frames`` frames over the whole length; or ``fps`` a second (by default 2), at most
    ``max_frames``. Raises OSError for a file that cannot be read, TypeError for what is no video and ``InvalidField``
    for numbers out of range; an address that cannot be fetched fails the generations that need it.
    """
    from mmserve.types import VideoPart

    VideoPart(b"", fps, num_frames, max_frames)  # judges the numbers
    return Video(video_source(source), calling_place("video"), Watched(num_frames, fps, max_frames))


def audio(sound: SoundLike) -> Expr:
    """A sound: a path, the bytes of a file, a file object, a data URI, or an address (``https://…``), which is fetched
    by this process. For models that hear.

    Raises OSError for a file that cannot be read and TypeError for what is no sound; an address that cannot be fetched
    fails the generations that need it.
    """
    return Audio(sound_source(sound), calling_place("audio"))


def _detail(level: str, min_pixels: int | None, max_pixels: int | None) -> Detail | None:
    if (level, min_pixels, max_pixels) == ("auto", None, None):
        return None
    from mmserve.types import Detail

    return Detail(level, min_pixels, max_pixels)


def system(expr: ExprLike | None = None) -> Expr:
    """A system turn."""
    return _turn("system", expr)


def user(expr: ExprLike | None = None) -> Expr:
    """A user turn."""
    return _turn("user", expr)


def assistant(expr: ExprLike | None = None) -> Expr:
    """An assistant turn; what the model writes goes here."""
    return _turn("assistant", expr)


def system_begin() -> Expr:
    return Begin("system")


def system_end() -> Expr:
    return End("system")


def user_begin() -> Expr:
    return Begin("user")


def user_end() -> Expr:
    return End("user")


def assistant_begin() -> Expr:
    return Begin("assistant")


def assistant_end() -> Expr:
    return End("assistant")


def _turn(role: str, expr: ExprLike | None) -> Expr:
    assert role in ROLES
    return Begin(role) if expr is None else Turned(role, as_expr(expr))


def _label(kind: str, name: str | None) -> str:
    return kind if name is None else f'{kind} "{name}"'


def texts_of(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One text or several, as a tuple."""
    if value is None:
        return None
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("stop is a string or a list of strings")
    return texts


def _choices(choices: Sequence[str] | None) -> tuple[str, ...]:
    if choices is None or isinstance(choices, str):
        raise InvalidField("choices is a list of strings", param="choices")
    from mmserve.grammar.spec import Choice

    if not all(isinstance(choice, str) for choice in choices):
        raise InvalidField("choices is a list of strings", param="choices")
    return Choice(tuple(choices)).options  # which refuses none at all, an empty one, and one given twice


def _constraint(dtype: type | None, regex: Any, json_schema: Any, ebnf: str | None) -> Constraint | None:
    from mmserve.grammar.spec import Grammar, Regex

    if dtype is not None:
        if dtype not in (int, str):
            raise InvalidConstraint("dtype is int or str", param="dtype")
        return Regex(INTEGER if dtype is int else QUOTED)
    if ebnf is not None:
        return Grammar(ebnf)
    if isinstance(regex, str):
        return Regex(regex)
    if regex is not None and isinstance(getattr(regex, "pattern", None), str) and not isinstance(regex, type):
        return Regex(regex.pattern)
    schema = json_schema if regex is None else regex
    return None if schema is None else _schema(schema)


def _schema(schema: Any) -> Constraint:
    from mmserve.client.constraints import shape_of
    from mmserve.grammar.spec import JsonSchema

    if isinstance(schema, Mapping):
        return JsonSchema.of(schema)
    wire = shape_of({"schema": schema}).body
    return JsonSchema.of(wire["response_format"]["json_schema"]["schema"])
