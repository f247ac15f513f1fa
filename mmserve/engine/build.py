"""Putting an engine together from a checkpoint."""

from __future__ import annotations

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.engine import Engine, Outputs
from mmserve.engine.output import OutputStream, ScoreSheet
from mmserve.engine.parallel.runner import build_parallel_runner
from mmserve.engine.runner import build_runner
from mmserve.engine.sequence import Sequence
from mmserve.grammar.lowered import COMPACT, SPACED
from mmserve.grammar.vocabulary import Vocabulary
from mmserve.prompt import TokenTable, layout_for


def build_engine(checkpoint: Checkpoint, config: EngineConfig) -> Engine:
    """Load the model onto the device. Raises ``ConfigError`` and ``CheckpointError`` with one clear sentence."""
    table = TokenTable.load(checkpoint.tokenizer_path)
    layout = layout_for(checkpoint)
    eos_ids = frozenset(checkpoint.eos_token_ids)

    def new_stream(seq: Sequence) -> OutputStream:
        return OutputStream(seq, table, eos_ids)

    def new_sheet(seq: Sequence) -> ScoreSheet:
        return ScoreSheet(seq, table)

    runner = (build_runner if config.tp_size == 1 else build_parallel_runner)(checkpoint, config)
    return Engine(
        runner,
        config,
        positions=layout.positions,
        whole_pictures=layout.whole_pictures,
        outputs=Outputs(new_stream, new_sheet),
        vocabulary=Vocabulary(checkpoint.tokenizer_path, size=runner.vocab_size, eos_ids=checkpoint.eos_token_ids),
        json_style=SPACED if checkpoint.json_style == "spaced" else COMPACT,
        eos_ids=checkpoint.eos_token_ids,
        max_model_len=checkpoint.max_model_len,
    )
