"""Programs: functions of a state, and the ways to run them."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, cast, overload

from mmserve.lang.api import texts_of
from mmserve.lang.calls import Backend, Options
from mmserve.lang.default import default_backend
from mmserve.lang.execution import Run
from mmserve.lang.state import ProgramState
from mmserve.lang.transcript import Transcript

P = ParamSpec("P")
R = TypeVar("R")


class RunOptions(TypedDict, total=False):
    """What holds in a run where a ``gen`` says nothing; ``max_new_tokens`` is a ``gen``'s ``max_tokens``."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    ignore_eos: bool | None


_OWN = ("backend", "stream")

_AUTO_THREADS = 128
"""Programs at a time where nothing is said: more than an engine computes at once, so that its batch stays full."""


@dataclass(frozen=True, slots=True)
class _Given:
    """A program's arguments but for the state."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Program(Generic[P, R]):
    """What ``@function`` makes of a function whose first parameter is the state.

    ``run`` executes it with the other parameters. Called with a state, it writes into that one: programs are made of
    programs.
    """

    def __init__(self, function: Callable[Concatenate[ProgramState, P], R], bound: Mapping[str, Any] | None = None):
        self._function = function
        self._bound = dict(bound or {})
        self._signature = inspect.signature(function)
        if not self._signature.parameters:
            raise TypeError(f"{function.__name__} needs a first parameter for the state, like def program(s, question)")
        for name in _OWN:
            if name in self._names:
                raise TypeError(f"{function.__name__} has a parameter {name!r}, which is run's own; rename it")
        functools.update_wrapper(self, function)

    @property
    def _names(self) -> list[str]:
        return list(self._signature.parameters)[1:]

    def __call__(self, s: ProgramState, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do what the program does to ``s``, which may have been written to before."""
        return self._function(s, *args, **{**self._bound, **kwargs})

    def bind(self, **kwargs: Any) -> Program[..., R]:
        """The program with some of its arguments given. Raises TypeError for names that it does not have."""
        unknown = kwargs.keys() - set(self._names)
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in self._signature.parameters.values()):
            raise TypeError(f"{self._function.__name__} has no parameter {', '.join(map(repr, sorted(unknown)))}")
        return Program(self._function, {**self._bound, **kwargs})

    # One overload for each way to say something beside the program's own arguments, so that those are checked.
    @overload
    def run(self, *args: P.args, **kwargs: P.kwargs) -> ProgramState: ...
    @overload
    def run(self, *args: Any, backend: Backend | None, **kwargs: Any) -> ProgramState: ...
    @overload
    def run(self, *args: Any, stream: bool, **kwargs: Any) -> ProgramState: ...
    @overload
    def run(self, *args: Any, temperature: float | None, **kwargs: Any) -> ProgramState: ...
    @overload
    def run(self, *args: Any, max_new_tokens: int | None, **kwargs: Any) -> ProgramState: ...
    @overload
    def run(self, *args: Any, seed: int | None, **kwargs: Any) -> ProgramState: ...
    @overload
    def run(self, *args: Any, stop: str | Sequence[str] | None, **kwargs: Any) -> ProgramState: ...
    def run(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Execute the program and return its state, with everything generated.

        ``kwargs`` are the program's own and :class:`RunOptions`; a name that both have is the program's. What the
        program raises is raised here, after its requests have been ended; an error of a generation that nothing has
        read waits in the state. With ``stream`` it returns at once: the program goes on in a thread, ``text_iter`` and
        ``async_iter`` follow it, and it ends early with the state's ``close``, its ``with`` block, or when the state is
        dropped.
        """
        backend, stream = kwargs.pop("backend", None), kwargs.pop("stream", False)
        given, options = self._split(args, kwargs)
        run = Run(backend or default_backend(), options)
        transcript = Transcript(run)
        if stream:
            work = functools.partial(self._execute, transcript, given, reraise=False)
            threading.Thread(target=work, name=f"program-{self._function.__name__}", daemon=True).start()
        else:
            self._execute(transcript, given, reraise=True)
        return ProgramState(transcript, outside=True)

    def run_batch(
        self,
        batch_arguments: Sequence[Mapping[str, Any]],
        *,
        backend: Backend | None = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        **options: Unpack[RunOptions],
    ) -> list[ProgramState]:
        """Execute the program once for each mapping of arguments, ``num_threads`` at a time; states in their order.

        Where a program raises, the others go on, and reading its state raises what it raised. Ctrl-C ends them all.
        """
        where = backend or default_backend()
        prepared = [self._split((), {**arguments, **options}) for arguments in batch_arguments]
        transcripts = [Transcript(Run(where, defaults)) for _, defaults in prepared]
        threads = min(len(prepared), _AUTO_THREADS if num_threads == "auto" else num_threads) or 1
        pool = ThreadPoolExecutor(threads, thread_name_prefix=f"program-{self._function.__name__}")
        try:
            work = [
                pool.submit(self._execute, transcript, given, reraise=False)
                for transcript, (given, _) in zip(transcripts, prepared, strict=True)
            ]
            for done, future in enumerate(as_completed(work), 1):
                future.result()
                if progress_bar:
                    print(f"\r{done}/{len(work)} programs", end="", file=sys.stderr, flush=True)
            if progress_bar:
                print(file=sys.stderr)
        except BaseException:
            for transcript in transcripts:
                transcript.run.cancel()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return [ProgramState(transcript, outside=True) for transcript in transcripts]

    def explain(self, *args: Any, backend: Backend | None = None, **kwargs: Any) -> str:
        """Print, and return, the prompts that the program makes and how much of each the cache has already.

        The program runs with stand-ins: a ``gen`` gives its name in braces, a ``select`` its first choice. Each prompt
        is sent once for a single token, which also warms the cache.
        """
        from mmserve.lang.explain import explained

        given, options = self._split(args, kwargs)
        told = explained(functools.partial(self._call, given), backend or default_backend(), options)
        print(told)
        return told

    def _split(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[_Given, Options]:
        """The program's arguments and the run's options apart. Raises TypeError for what fits neither."""
        options = RunOptions.__annotations__.keys() - set(self._names)
        said = {name: value for name, value in kwargs.items() if name in options}
        given = _Given(tuple(args), {**self._bound, **{k: v for k, v in kwargs.items() if k not in said}})
        try:
            self._signature.bind(None, *given.args, **given.kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function.__name__}: {error}") from None
        return given, options_of(said)

    def _call(self, given: _Given, s: ProgramState) -> R:
        function = cast("Callable[..., R]", self._function)
        return function(s, *given.args, **given.kwargs)

    def _execute(self, transcript: Transcript, given: _Given, *, reraise: bool) -> None:
        run = transcript.run
        try:
            run.value = self._call(given, ProgramState(transcript))
        except BaseException as error:
            run.finish(error)
            run.settle()
            if reraise or not isinstance(error, Exception):
                raise
            return
        run.finish()
        try:
            run.settle()
        except BaseException:  # Ctrl-C
            run.cancel()
            raise


@overload
def function(func: Callable[Concatenate[ProgramState, P], R]) -> Program[P, R]: ...
@overload
def function() -> Callable[[Callable[Concatenate[ProgramState, P], R]], Program[P, R]]: ...
def function(func: Callable[Concatenate[ProgramState, P], R] | None = None) -> Any:
    """Decorator: make a program of a function whose first parameter is the state."""
    return Program if func is None else Program(func)


def options_of(said: Mapping[str, Any]) -> Options:
    """Raises ``TypeError`` for a field of another type than it has."""
    fields = {("max_tokens" if name == "max_new_tokens" else name): value for name, value in said.items()}
    fields["stop"] = texts_of(fields.get("stop"))
    return Options(**fields)
