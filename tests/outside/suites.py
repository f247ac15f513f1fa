"""Test suites that others wrote, and tests of ours over others' clients, against a server of ours: each result listed.

    python tests/outside/suites.py ENVIRONMENTS --server .venv/bin/mmserve

``ENVIRONMENTS`` is a folder with the virtual environments of ``requirements.json``'s names; they are made where they
are missing. Needs nothing but Python's own library. What does not pass is listed in ``reasons.json`` with why it does
not; a test that fails and is not listed there, or is listed and passes, makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTEST = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:warnings", "-c", os.devnull]
LOOPS = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
LONGEST_SECONDS = 120


@dataclass(frozen=True)
class Suite:
    """``files`` are run by pytest in the environment ``env``; ``{sources}`` stands for the folder of sources there."""

    title: str
    env: str
    files: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


OUTLINES = {"SGLANG_MODEL_NAME": "default", "VLLM_MODEL_NAME": "default"}
SUITES = (
    Suite("SGLang's server kits", "sglang", ("tests/outside/kits.py",)),
    Suite(
        "outlines' client tests for SGLang's and vLLM's servers",
        "outlines",
        ("{sources}/tests/models/test_sglang.py", "{sources}/tests/models/test_vllm.py"),
        OUTLINES,
    ),
    Suite("OpenAI's client", "langchain", ("tests/outside/openai_client.py",)),
    Suite(
        "LangChain's standard tests of chat models, and a picture",
        "langchain",
        ("tests/outside/langchain_chat.py",),
        options=tuple(LOOPS),
    ),
    Suite("LiteLLM", "litellm", ("tests/outside/litellm_chat.py",), {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
)


FRONTEND = "SGLang's own frontend"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("environments", type=Path)
    parser.add_argument("--server", default="mmserve", help="the command; started on --port")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--only", default="", help="suites whose titles contain this")
    arguments = parser.parse_args()
    reasons: dict[str, dict[str, str]] = json.loads((HERE / "reasons.json").read_text())
    surprises = 0
    environments = arguments.environments.absolute()
    with served(arguments.server, arguments.port) as url:
        if arguments.only in FRONTEND:
            print(f"## {FRONTEND}\n", flush=True)
            surprises += frontend(environment(environments, "sglang"), url)
        for suite in SUITES:
            if arguments.only in suite.title:
                python = environment(environments, suite.env)
                print(f"\n## {suite.title} ({versions(python, suite.env)})\n", flush=True)
                surprises += tell(run(suite, python, url), reasons.get(suite.title, {}))
    print(f"\n{surprises} results are not as they are listed" if surprises else "\nEvery result is as it is listed.")
    return int(surprises > 0)


@contextlib.contextmanager
def served(command: str, port: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([*command.split(), "serve", "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def environment(folder: Path, name: str) -> Path:
    """The Python of an environment, which is made where it is not there."""
    python = folder / name / "bin" / "python"
    if not (folder / name / "ready").exists():
        venv.create(folder / name, with_pip=True, clear=True)
        for arguments in json.loads((HERE / "requirements.json").read_text())[name]["install"]:
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            subprocess.run([*pip, *arguments], check=True, stderr=subprocess.DEVNULL)
        fetch_sources(folder / name, python, json.loads((HERE / "requirements.json").read_text())[name].get("sources"))
        (folder / name / "ready").touch()
    return python


def fetch_sources(folder: Path, python: Path, name: str | None) -> None:
    """A source distribution, for the tests in it, unpacked as ``folder``/sources."""
    if name is None:
        return
    with tempfile.TemporaryDirectory() as place:
        download = ["download", "--quiet", "--no-deps", "--no-binary", name.partition("==")[0], "-d", place, name]
        subprocess.run([str(python), "-m", "pip", *download], check=True, stderr=subprocess.DEVNULL)
        [archive] = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(place, filter="data")
        [unpacked] = [path for path in Path(place).iterdir() if path.is_dir()]
        subprocess.run(["cp", "-r", str(unpacked), str(folder / "sources")], check=True)


def versions(python: Path, env: str) -> str:
    names = json.loads((HERE / "requirements.json").read_text())[env]["show"]
    code = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    return subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout.strip()


def frontend(python: Path, url: str) -> int:
    """Its programs tell of themselves; returns 1 where one is not as it should be."""
    script = str(HERE / "sglang_frontend.py")
    ended = subprocess.run([str(python), "-W", "ignore", script, url], stderr=subprocess.DEVNULL, check=False)
    return int(ended.returncode != 0)


def run(suite: Suite, python: Path, url: str) -> dict[str, tuple[str, str]]:
    """Each test's outcome ("passed", "skipped", "failed") and the first line of what it says."""
    sources = python.parents[1] / "sources"
    theirs = any("{sources}" in file for file in suite.files)
    files = [file.format(sources=sources) for file in suite.files]
    servers = {"OUTSIDE_URL": url, "SGLANG_SERVER_URL": f"{url}/v1", "VLLM_SERVER_URL": f"{url}/v1"}
    root = sources if theirs else ROOT
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        limit = ["--timeout", str(LONGEST_SECONDS)]
        subprocess.run(
            [str(python), *PYTEST, *suite.options, *limit, f"--rootdir={root}", f"--junit-xml={report}", *files],
            env={**os.environ, **servers, **suite.variables, "PYTHONPATH": str(root)},
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return outcomes(report)


def outcomes(report: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        where = case.get("classname", "").rpartition(".")[2]
        name = f"{where}::{case.get('name')}"
        kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        first = next((child for child in case if child.tag in kinds), None)
        if first is None:
            found[name] = ("passed", "")
        else:
            found[name] = (kinds[first.tag], first.get("message", "").split("\n")[0][:160])
    return found


def tell(results: Mapping[str, tuple[str, str]], reasons: Mapping[str, str]) -> int:
    """Print the table; returns how many results are not as they are listed."""
    surprises = 0
    for name, (outcome, message) in results.items():
        reason = next((reason for test, reason in reasons.items() if name == test or name.startswith(f"{test}[")), None)
        if outcome == "passed":
            surprises += reason is not None
            print(f"ok       {name}" + ("  (listed as not passing)" if reason else ""))
            continue
        surprises += reason is None
        print(f"{'skipped' if outcome == 'skipped' else 'not ok':7}  {name}: {reason or f'NOT LISTED: {message}'}")
    passed = sum(outcome == "passed" for outcome, _ in results.values())
    print(f"\n{passed} of {len(results)} pass")
    return surprises + (not results)


if __name__ == "__main__":
    sys.exit(main())
