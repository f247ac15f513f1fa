"""The Dockerfile, the unit and the example settings, read against the repository: paths and flags that exist."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path

from mmserve.cli import build_parser
from mmserve.cli_config import apply_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continuation lines joined, comments left out."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in found]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_only_known_instructions_are_used() -> None:
    known = {
        "FROM",
        "ARG",
        "WORKDIR",
        "RUN",
        "COPY",
        "USER",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "STOPSIGNAL",
        "ENTRYPOINT",
    }
    assert {word for word, _ in instructions()} <= known


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for rest in of("COPY") if not rest.startswith("--from") for word in rest.split()[:-1]]
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)


def test_what_the_wheel_is_made_of_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "pyproject.toml"}
    copied = {word for rest in of("COPY") for word in rest.split()[:-1]}
    assert needed <= copied
    (extra,) = re.findall(r'pip install --no-cache-dir "\.\[(\w+)\]"', " ".join(of("RUN")))
    assert extra in project["project"]["optional-dependencies"]


def test_the_image_is_small_and_runs_without_root() -> None:
    words = [word for word, _ in instructions()]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    assert of("USER") == ["mmserve"]
    assert "useradd --create-home --uid 10001 mmserve" in of("RUN")[-1]
    assert all(":" in image.split()[0] and ":latest" not in image for image in of("FROM"))
    for command in of("RUN"):
        assert "pip install" not in command or "--no-cache-dir" in command
        assert "apt-get install" not in command or ("--no-install-recommends" in command and "rm -rf" in command)
        assert "sudo" not in command


def test_the_device_is_an_argument() -> None:
    assert of("ARG") == ["DEVICE=cuda"]
    assert any('"$DEVICE" = cpu' in command for command in of("RUN"))


def test_its_settings_are_settings() -> None:
    variables = dict(pair.split("=", 1) for pair in shlex.split(of("ENV")[0]))
    parser = build_parser()
    ours = {name: value for name, value in variables.items() if name.startswith("MMSERVE_")}
    apply_settings(parser.parse_args(["serve"]).settings, None, ours)
    found = parser.parse_args(["serve"])
    assert (found.host, found.port, found.log_format) == ("0.0.0.0", 8000, "json")
    assert of("EXPOSE") == [str(found.port)]
    assert of("ENTRYPOINT") == ['["mmserve", "serve"]']


def test_the_health_check_is_a_program_and_its_path_a_route() -> None:
    (check,) = of("HEALTHCHECK")
    compile(re.findall(r'"-c", "(.*)"\]', check)[0], "HEALTHCHECK", "exec")
    assert "/health'" in check
    assert "--start-period" in check


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "mmserve.service", encoding="utf-8")
    return parser


def test_the_unit_starts_what_exists_and_outwaits_the_drain() -> None:
    service = unit()["Service"]
    _, *arguments = shlex.split(service["ExecStart"])
    found = build_parser().parse_args(arguments)
    assert str(found.config) == "/etc/mmserve/mmserve.toml"
    settings = tomllib.loads((DEPLOY / "mmserve.toml").read_text(encoding="utf-8"))
    assert float(service["TimeoutStopSec"]) > settings["drain-seconds"]
    assert float(service["TimeoutStopSec"]) > build_parser().parse_args(["serve"]).drain_seconds
    assert service["KillSignal"] == "SIGTERM"
    assert unit()["Install"]["WantedBy"] == "multi-user.target"


def test_the_example_settings_are_settings() -> None:
    parser = build_parser()
    apply_settings(parser.parse_args(["serve"]).settings, DEPLOY / "mmserve.toml", {})
    assert parser.parse_args(["serve"]).max_queue == 256
