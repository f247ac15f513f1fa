"""Settings of a process, as plain frozen values; the CLI fills them. A leaf: no torch."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a single request may bring, and how long it may take. Sizes in bytes, lengths in tokens.

    ``max_video_pixels`` are of one frame, ``max_video_seconds`` of the whole file and ``max_video_frames`` of what the
    model sees of it. ``max_captions`` is for requests whose pictures are captioned one by one. Pictures that callers
    send once and name afterwards have ``max_kept_bytes`` together, and each is kept for ``kept_seconds`` after its last
    use.
    ``max_parts`` and ``max_field_bytes`` are for forms. A request's headers may take ``header_seconds`` to arrive, and
    then its body ``upload_seconds``.
    """

    max_picture_bytes: int = 20 * MIB
    max_picture_pixels: int = 64_000_000
    max_pictures: int = 16
    max_videos: int = 4
    max_video_bytes: int = 64 * MIB
    max_video_pixels: int = 4096 * 2304
    max_video_seconds: float = 600.0
    max_video_frames: int = 256
    max_sounds: int = 8
    max_sound_bytes: int = 25 * MIB
    max_sound_seconds: float = 600.0
    max_captions: int = 256
    max_body_bytes: int = 64 * MIB
    max_queue: int = 4096
    max_kept_bytes: int = 256 * MIB
    kept_seconds: float = 3600.0
    max_parts: int = 256
    max_field_bytes: int = MIB
    max_header_bytes: int = 16 * 1024
    header_seconds: float = 30.0
    upload_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What may be kept of files and batches, and how much of the engine batches take.

    A file has at most ``max_file_bytes``, and all of them together ``max_data_bytes``: a batch's answers count, but are
    never refused. A batch has at most ``max_batch_requests``, and at most ``max_batches`` may be unfinished.
    ``concurrency`` is the number of requests of all batches that run at a time. ``kept_seconds`` is how long files of
    batches are kept where nothing else was asked; ``ended_seconds`` how long a batch can be looked up after its end.
    """

    max_file_bytes: int = 512 * MIB
    max_data_bytes: int = 16 * 1024 * MIB
    max_batch_requests: int = 50_000
    max_batches: int = 1000
    concurrency: int = 8
    kept_seconds: int = 30 * 86_400
    ended_seconds: int = 90 * 86_400


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine runs.

    ``dtype`` is ``"auto"`` (float32 on a CPU, the checkpoint's own on a GPU) or a torch dtype's name. ``quantization``
    is ``"auto"`` (what ``models.yaml`` says), ``"none"``, ``"int8"`` or ``"fp8"``: the decoder's weights in eight bits.
    ``kv_slots`` is the number of tokens whose keys and values fit; ``None`` sizes it from ``kv_bytes``
    on a CPU and from free memory times ``memory_fraction`` on a GPU. ``step_tokens`` is the budget that prefill chunks
    and decodes share in a step; ``encode_patches`` the vision patches encoded in one. ``tier_bytes`` bounds the second
    cache tier, pinned host memory beside a GPU and a temporary file in ``tier_folder`` beside a CPU; prefixes and gains
    of fewer than ``tier_min_tokens`` are left to recomputing. ``fast_forward`` appends the tokens that a grammar forces
    without computing a choice for each. ``tp_size`` processes share the decoder (tensor parallelism), one a GPU from
    ``device`` on; all sizes in bytes are those of all of them together.
    """

    device: str = "auto"
    tp_size: int = 1
    dtype: str = "auto"
    quantization: str = "auto"
    max_running: int = 64
    step_tokens: int = 2048
    encode_patches: int = 16_384
    kv_slots: int | None = None
    kv_bytes: int = 512 * MIB
    memory_fraction: float = 0.85
    encoder_cache_bytes: int = 256 * MIB
    tier_bytes: int = 0
    tier_min_tokens: int = 32
    tier_folder: str | None = None
    decode_threads: int = 2
    grammar_threads: int = 2
    fast_forward: bool = True
    share_threshold: int = 32
    reuse: bool = True
    check_invariants: bool = False
