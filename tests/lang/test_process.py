"""What the language does to the process that it is in: what it loads, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.test_package import HEAVY, loaded_by

PROGRAM = """
    import mmserve as sgl

    @sgl.function
    def ask(s):
        s += sgl.user("hello") + sgl.assistant(sgl.gen("x", 4000, ignore_eos=True))

"""


def executed(script: str) -> subprocess.CompletedProcess[str]:
    source = textwrap.dedent(PROGRAM) + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)


def test_a_program_loads_nothing_heavy_before_it_runs() -> None:
    modules = loaded_by(textwrap.dedent(PROGRAM))
    assert not modules & {*HEAVY, "httpx", "pydantic"}
    modules = loaded_by("import mmserve as sgl; sgl.RuntimeEndpoint('http://localhost:1').close()")
    assert not modules & set(HEAVY)


@pytest.mark.parametrize(
    "script",
    [
        """
        state = ask.run(backend=sgl.Engine(model_path="pocket-vl", device="cpu"), stream=True)
        print(len(next(state.text_iter("x"))) > 0)
        """,
        """
        engine = sgl.Engine(model_path="pocket-vl", device="cpu")
        print(len(ask.bind().run(backend=engine, temperature=0.0, stop="a").text()) > 0)
        """,
    ],
    ids=["in the middle", "afterwards"],
)
def test_a_process_ends_while_it_generates_and_says_nothing(script: str) -> None:
    """With an engine that nobody has closed."""
    ended = executed(script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_a_child_that_was_forked_has_a_loop_of_its_own() -> None:
    ended = executed(
        """
        import os
        from mmserve.lang.loop import program_loop

        async def answer():
            return 42

        program_loop().run(answer())
        child = os.fork()
        if child == 0:
            os._exit(program_loop().run(answer()))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert ended.stdout == "42\n", ended.stderr
