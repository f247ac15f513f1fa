"""ProgramState: the ``s`` of a program, and what a run of one returns."""

from __future__ import annotations

import asyncio
import base64
import weakref
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self, cast, overload

from mmserve.lang.calls import Part, Said, Shown
from mmserve.lang.draft import known_turns
from mmserve.lang.errors import Failed, ProgramError
from mmserve.lang.expressions import Begin, End, ExprLike, Joined, Turned, as_expr
from mmserve.lang.slots import MetaInfo, Variable
from mmserve.lang.transcript import Named, Transcript


class ProgramState:
    """A conversation that a program writes and the model continues.

    ``s += …`` adds text, pictures, turns and generations, and returns at once; ``s["name"]`` and the other queries wait
    for what they need. A generation that failed raises its typed error there, with the program's line.

    A state belongs to the thread of its program; a finished one, or one that streams, may be read from any.
    """

    def __init__(self, transcript: Transcript, *, outside: bool = False) -> None:
        """``outside`` states are for whoever runs the program: their readers wait for what it may still write."""
        self._transcript = transcript
        self._outside = outside
        if outside:
            weakref.finalize(self, transcript.run.abandon).atexit = False

    # -- writing ------------------------------------------------------------------------------------------------

    def __iadd__(self, other: ExprLike) -> Self:
        self._transcript.add(as_expr(other))
        return self

    @overload
    def system(self, expr: ExprLike) -> None: ...
    @overload
    def system(self, expr: None = None) -> AbstractContextManager[None]: ...
    def system(self, expr: ExprLike | None = None) -> AbstractContextManager[None] | None:
        """Add a system turn; without ``expr``, one that the ``with`` block writes."""
        return self._turn("system", expr)

    @overload
    def user(self, expr: ExprLike) -> None: ...
    @overload
    def user(self, expr: None = None) -> AbstractContextManager[None]: ...
    def user(self, expr: ExprLike | None = None) -> AbstractContextManager[None] | None:
        """Add a user turn; without ``expr``, one that the ``with`` block writes."""
        return self._turn("user", expr)

    @overload
    def assistant(self, expr: ExprLike) -> None: ...
    @overload
    def assistant(self, expr: None = None) -> AbstractContextManager[None]: ...
    def assistant(self, expr: ExprLike | None = None) -> AbstractContextManager[None] | None:
        """Add an assistant turn; without ``expr``, one that the ``with`` block writes."""
        return self._turn("assistant", expr)

    def _turn(self, role: str, expr: ExprLike | None) -> AbstractContextManager[None] | None:
        if expr is None:
            return self._written(role)
        self._transcript.add(Turned(role, as_expr(expr)))
        return None

    @contextmanager
    def _written(self, role: str) -> Iterator[None]:
        self._transcript.add(Begin(role))
        yield
        self._transcript.add(End(role))

    def set_var(self, name: str, value: str) -> None:
        """Give a value a name, as if it had been generated; nothing is added to the text."""
        self._transcript.adopt({name: Variable.known(value)})

    __setitem__ = set_var

    # -- branches -----------------------------------------------------------------------------------------------

    def fork(self, size: int = 1) -> ProgramGroup:
        """``size`` states that go on from here, each its own way.

        What is written so far is shared: also in the cache, where it is computed once, its pictures too.
        """
        if size < 1:
            raise ProgramError(f"fork makes at least one branch, not {size}")
        return ProgramGroup(self, [ProgramState(self._transcript.branch()) for _ in range(size)])

    def copy(self) -> ProgramState:
        """Another state that goes on from here."""
        return ProgramState(self._transcript.branch())

    # -- reading ------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> str:
        """What was generated under ``name``. Waits for it.

        Raises ``NoSuchVariable`` (a KeyError) for a name that nothing generates, and the generation's typed error.
        """
        return self._find(name).get().text

    get_var = __getitem__

    def __contains__(self, name: object) -> bool:
        return name in self._transcript.variables

    def get_meta_info(self, name: str) -> MetaInfo:
        """What else is known of the generation ``name``. Waits, and raises as reading it does."""
        return cast("MetaInfo", self._find(name).report())

    def text(self) -> str:
        """All text up to here, turns apart by line breaks, pictures left out. Waits."""
        self._wait_for_program()
        pieces = self._transcript.items.snapshot()
        return "".join(piece if isinstance(piece, str) else piece.get().text for piece in pieces)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as OpenAI's messages, pictures as data URIs. Waits."""
        self._wait_for_program()
        turns = known_turns(self._transcript.draft)
        return [{"role": turn.role, "content": wire_content(turn.parts)} for turn in turns]

    def error(self) -> Exception | None:
        """What went wrong here first: a generation's error, or what the program raised. Waits."""
        try:
            self.text()
        except Exception as error:
            return error
        failure = self._transcript.run.failure
        return failure if isinstance(failure, Exception) else None

    @property
    def ret_value(self) -> Any:
        """What the program returned. Waits for its end."""
        self._wait_for_program()
        return self._transcript.run.value

    def sync(self) -> None:
        """Wait until all that was written so far is generated; errors are left to the readers."""
        for item in self._transcript.items.snapshot():
            if isinstance(item, Variable):
                for _ in item.pieces:
                    pass

    def text_iter(self, name: str | None = None) -> Iterator[str]:
        """The text of ``name``, or all text, in pieces as it is written. Raises what reading it raises."""
        if name is not None:
            yield from _pieces(self._find(name))
            return
        items = self._transcript.items if self._outside else self._transcript.items.snapshot()
        for item in items:
            if isinstance(item, str):
                yield item
            else:
                yield from _pieces(item)
        self._wait_for_program()

    async def async_iter(self, name: str | None = None) -> AsyncGenerator[str, None]:
        """:meth:`text_iter` for ``async for``, in any event loop."""
        if name is not None:
            async for piece in _following(await asyncio.to_thread(self._find, name)):
                yield piece
            return
        if not self._outside:
            for piece in self.text_iter():
                yield piece
            return
        async for item in self._transcript.items.follow():
            if isinstance(item, str):
                yield item
                continue
            async for piece in _following(item):
                yield piece
        self._wait_for_program()

    text_async_iter = async_iter

    def close(self) -> None:
        """End what the program is still generating; nothing of it is running when this returns. May be called again."""
        run = self._transcript.run
        run.cancel()
        run.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._outside:
            self.close()

    def __repr__(self) -> str:
        names = ", ".join(self._transcript.variables)
        return f"<ProgramState of {len(self._transcript.draft.turns)} turns, variables: {names or 'none'}>"

    def _find(self, name: str) -> Variable:
        return self._transcript.find(name, wait=self._outside)

    def _wait_for_program(self) -> None:
        run = self._transcript.run
        if self._outside:
            with run.changed:
                run.changed.wait_for(lambda: run.finished)
            if run.failure is not None:
                raise run.failure


class ProgramGroup(Sequence[ProgramState]):
    """The branches of a fork."""

    def __init__(self, source: ProgramState, states: Sequence[ProgramState]) -> None:
        self._source = source
        self._states = tuple(states)
        self._before = dict(source._transcript.variables)

    @overload
    def __getitem__(self, key: int) -> ProgramState: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[ProgramState]: ...
    @overload
    def __getitem__(self, key: str) -> list[str]: ...
    def __getitem__(self, key: int | slice | str) -> ProgramState | Sequence[ProgramState] | list[str]:
        """A branch; or what all branches generated under a name, in their order."""
        if isinstance(key, str):
            return [state[key] for state in self._states]
        return self._states[key]

    def __setitem__(self, key: int, state: ProgramState) -> None:
        """Only what ``forks[i] += …`` needs: the branch itself."""
        if self._states[key] is not state:
            raise TypeError("a branch cannot be replaced; add to it with forks[i] += ...")

    def __len__(self) -> int:
        return len(self._states)

    def __iadd__(self, other: ExprLike) -> Self:
        """Add the same to every branch."""
        for state in self._states:
            state += other
        return self

    def join(self) -> Joined:
        """Bring what the branches generated back, by name, into the state that was forked.

        The result may be added to that state or another one: that brings the names, and no text; the branches' own
        texts stay theirs. It does not wait. A name that several branches have is read from the group.
        """
        self._source._transcript.adopt(self.variables())
        return Joined(self)

    def variables(self) -> dict[str, Named]:
        """What the branches have named since the fork; a tuple where several have."""
        found: dict[str, Named] = {}
        for state in self._states:
            for name, named in state._transcript.variables.items():
                if self._before.get(name) is named:
                    continue
                variables = named if isinstance(named, tuple) else (named,)
                earlier = found.get(name, ())
                all_of = (*(earlier if isinstance(earlier, tuple) else (earlier,)), *variables)
                found[name] = all_of if len(all_of) > 1 else all_of[0]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.join()


def wire_content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """A turn's content in OpenAI's form: text, or a list where there are media."""
    if all(isinstance(part, Said) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Said))
    return [{"type": "text", "text": part.text} if isinstance(part, Said) else _shown_part(part) for part in parts]


def _shown_part(part: Shown) -> dict[str, Any]:
    if part.kind == "audio":
        from mmserve.client.sounds import SoundFile

        return SoundFile("sound", part.data).part()
    if part.kind == "video":
        from mmserve.client.videos import VideoFile

        return {
            "type": "video_url",
            "video_url": {"url": VideoFile("video", part.data).data_uri, **part.watched.said()},
        }
    looking = part.detail.said() if part.detail else {}
    return {"type": "image_url", "image_url": {"url": data_uri(part.data), **looking}}


def data_uri(data: bytes) -> str:
    from mmserve.client.pictures import PictureFile

    return f"data:{PictureFile('image', data).media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _pieces(variable: Variable) -> Iterator[str]:
    yield from variable.pieces
    variable.get()


async def _following(variable: Variable) -> AsyncGenerator[str, None]:
    async for piece in variable.pieces.follow():
        yield piece
    try:
        await variable.wait()
    except Failed as failed:
        raise failed.fresh() from failed.error
