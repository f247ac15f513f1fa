"""``python -m mmserve.launch_server --model-path … --port …``: ``mmserve serve`` under SGLang's spelling.

SGLang's flags are mapped where the same thing exists here; ``mmserve serve``'s own are taken as they are; any other is
refused, since a server that silently does without what it was asked for is worse than one that does not start.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence

from mmserve.cli import build_parser
from mmserve.cli import main as run

DEFAULT_PORT = "30000"

ALIASES: Mapping[str, str] = {
    "--model-path": "--model",
    "--model": "--model",
    "--context-length": "--max-model-len",
    "--max-running-requests": "--max-running",
    "--max-queued-requests": "--max-queue",
    "--chunked-prefill-size": "--step-tokens",
    "--max-total-tokens": "--kv-slots",
    "--mem-fraction-static": "--memory-fraction",
    "--tp-size": "--tp",
    "--tensor-parallel-size": "--tp",
    "--watchdog-timeout": "--watchdog-seconds",
}

NEEDLESS: Mapping[str, str] = {
    "--enable-metrics": "metrics are always on, at /metrics",
    "--enable-multimodal": "every model here takes pictures",
    "--trust-remote-code": "code from a checkpoint is never run, and never needed",
    "--skip-server-warmup": "there is no warm-up",
}
"""Switches that ask for what is so anyway."""

ONES = frozenset({"--dp", "--dp-size", "--data-parallel-size", "--nnodes"})
"""Only 1 can be given: a server has one engine."""

_LOG_LEVELS = {"critical": "error", "fatal": "error", "warn": "warning", "trace": "debug"}


class Misuse(Exception):
    """A flag that cannot be mapped; the message says what to do."""


def translate(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """``mmserve serve``'s arguments for SGLang's, and notes about those that were left out. Raises ``Misuse``."""
    known = serve_flags()
    said: list[str] = []
    notes: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            said.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in NEEDLESS:
            notes.append(f"{flag} is not needed: {NEEDLESS[flag]}")
        elif flag in ONES:
            number = value if equals else words.pop(0) if words else ""
            if number != "1":
                raise Misuse(f"{flag} {number} is not possible: a server has one engine, so it can only be 1")
        elif flag == "--log-level":
            level = (value if equals else words.pop(0) if words else "").lower()
            said += [flag, _LOG_LEVELS.get(level, level)]
        elif (target := ALIASES.get(flag, flag)) in known:
            said.append(target + equals + value)
        else:
            close = difflib.get_close_matches(flag, [*known, *ALIASES], 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise Misuse(f"{flag} of SGLang has no counterpart here; {hint}mmserve serve --help lists what there is")
    if not any(word == "--port" or word.startswith("--port=") for word in said):
        said += ["--port", DEFAULT_PORT]
    return said, notes


def serve_flags() -> frozenset[str]:
    """The long options of ``mmserve serve``."""
    parser = build_parser().parse_args(["serve"]).settings
    return frozenset(flag for action in parser._actions for flag in action.option_strings if flag.startswith("--"))


def main(argv: Sequence[str] | None = None) -> int:
    try:
        said, notes = translate(sys.argv[1:] if argv is None else argv)
    except Misuse as error:
        print(f"mmserve.launch_server: {error}", file=sys.stderr)
        return 2
    for note in notes:
        print(f"mmserve.launch_server: {note}", file=sys.stderr)
    return run(["serve", *said])


if __name__ == "__main__":
    sys.exit(main())
