"""The server kits that ship in SGLang's wheel (``sglang.test.kits``), as pytest cases against a running server.

Run by ``tests/outside/suites.py`` in an environment that has ``sglang`` (its wheel alone) and what the kits import.
The kits' own classes are mixed into what they ask of their host: ``base_url``, ``model``, ``client``, ``process``.
"""

from __future__ import annotations

import os
import unittest
from typing import Any

import openai
import requests

from tests.outside.sglang_frontend import import_frontend

import_frontend()  # importing sglang wants torch, which the kits do not

from sglang.test.kits import (  # noqa: E402
    abort_timeout_kit,
    basic_api_contract_kit,
    ebnf_constrained_kit,
    json_constrained_kit,
    json_mode_kit,
    matched_stop_kit,
    prefix_cache_branching_kit,
    regex_constrained_kit,
)

URL = os.environ["OUTSIDE_URL"]


class Alive:
    """Stands for the server's process: it has not ended as long as it answers."""

    def poll(self) -> int | None:
        return None if requests.get(f"{URL}/health", timeout=10).ok else 1


class Host:
    base_url = URL
    model = "default"
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    process = Alive()

    @classmethod
    def flush_cache(cls) -> None:
        requests.post(f"{URL}/flush_cache", timeout=10).raise_for_status()


def case(kit: Any, **settings: Any) -> type:
    """``kit`` with its host, under the kit's name."""
    return type(kit.__name__, (Host, kit, unittest.TestCase), settings)


BasicAPIContract = case(basic_api_contract_kit.BasicAPIContractMixin)
JSONConstrained = case(json_constrained_kit.JSONConstrainedMixin)
RegexConstrained = case(regex_constrained_kit.RegexConstrainedMixin)
EBNFConstrained = case(ebnf_constrained_kit.EBNFConstrainedMixin)
JSONMode = case(json_mode_kit.JSONModeMixin)
MatchedStop = case(matched_stop_kit.MatchedStopMixin)
PrefixCacheBranching = case(prefix_cache_branching_kit.PrefixCacheBranchingMixin, cache_chunk_size=64)
AbortAll = case(abort_timeout_kit.AbortAllMixin)
WaitingTimeout = case(abort_timeout_kit.WaitingTimeoutMixin)
RunningTimeoutTwoWave = case(abort_timeout_kit.RunningTimeoutTwoWaveMixin)
