"""Router: several backends by name, one chosen for each run of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from mmserve.errors import ConfigError
from mmserve.lang.calls import Backend
from mmserve.lang.program import Program
from mmserve.lang.state import ProgramState

R = TypeVar("R")

Choose: TypeAlias = "Callable[[str | None, Mapping[str, Any]], str]"
"""From a run's task and arguments to a backend's name."""


class Router:
    """Runs programs on one of several named backends: by the run's task, or as a function of it and the arguments says.

    ::

        router = Router({"ours": engine, "other": endpoint}, tasks={"simple_qa": "other"}, default="ours")
        router.run(program, task="simple_qa", question="…")

    A backend is anything that ``run(backend=…)`` takes; ``RuntimeEndpoint`` speaks to every OpenAI-compatible server.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        tasks: Mapping[str, str] | None = None,
        choose: Choose | None = None,
        default: str | None = None,
    ) -> None:
        """``default`` (else the first backend) takes the tasks that are not in ``tasks``; ``choose`` replaces both.

        Raises ``ConfigError`` for a name that is no backend's.
        """
        if not backends:
            raise ConfigError("a router needs at least one backend")
        if choose is not None and (tasks is not None or default is not None):
            raise ConfigError("a router goes by choose, or by tasks and default, not by both")
        self._backends = dict(backends)
        self._tasks = dict(tasks or {})
        self._default = default if default is not None else next(iter(self._backends))
        self._choose = choose
        for name in (*self._tasks.values(), self._default):
            self._named(name)

    def name_for(self, task: str | None = None, **arguments: Any) -> str:
        """The name of the backend that such a run goes to. Raises ``ConfigError`` where ``choose`` names none."""
        if self._choose is not None:
            name = self._choose(task, arguments)
        else:
            name = self._tasks.get(task, self._default) if task is not None else self._default
        self._named(name)
        return name

    def backend(self, task: str | None = None, **arguments: Any) -> Backend:
        """The backend that such a run goes to, for ``run(backend=…)`` and ``run_batch``."""
        return self._backends[self.name_for(task, **arguments)]

    def run(self, program: Program[..., R], *, task: str | None = None, **arguments: Any) -> ProgramState:
        """Run ``program`` with ``arguments`` (its own, and run's options) where ``task`` belongs."""
        return program.run(backend=self.backend(task, **arguments), **arguments)

    def close(self) -> None:
        """Close all backends."""
        for backend in self._backends.values():
            backend.close()

    def _named(self, name: str) -> Backend:
        if name not in self._backends:
            raise ConfigError(f"there is no backend {name!r}; there are: {', '.join(self._backends)}")
        return self._backends[name]
