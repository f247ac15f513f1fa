"""Several replicas' metrics as one text of Prometheus' format: every sample with the label ``replica``."""

from __future__ import annotations

from collections.abc import Mapping


def merge_metrics(texts: Mapping[str, str]) -> str:
    """``texts`` by replica -> one text, each family's samples together. They are in the format that
    ``web.operations.exposition`` writes, in which a family's HELP and TYPE stand before its samples."""
    families: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family, described = "", False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                described = family in families
                families.setdefault(family, [])
            if line.startswith("#"):
                if not described:
                    families[family].append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, replica))
    lines = [line for family, about in families.items() for line in (*about, *samples.get(family, ()))]
    return "\n".join(lines) + "\n"


def _labelled(sample: str, replica: str) -> str:
    label = f'replica="{replica}"'
    brace, space = sample.find("{"), sample.find(" ")
    if 0 <= brace < space:
        rest = sample[brace + 1 :]
        return f"{sample[: brace + 1]}{label}{'' if rest.startswith('}') else ','}{rest}"
    return f"{sample[:space]}{{{label}}}{sample[space:]}"
