"""Where answers come from: a server that is named, or a model that is loaded here. Options, and what they make."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from mmserve import __version__
from mmserve.cli_engine import Load, load_here
from mmserve.cli_safety import limits_of
from mmserve.client import AsyncClient
from mmserve.config import EngineConfig, Limits
from mmserve.errors import ConfigError
from mmserve.registry import load_registry

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from web.service import Service

DEFAULT_MODEL = "pocket-vl"
_CLOSING_SECONDS = 3


def add_model(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a name from models.yaml, a checkpoint folder, or owner/name[@revision] on Hugging Face (%(default)s)",
    )
    parser.add_argument("--offline", action="store_true", help="download nothing: what is not here is refused")


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        default=os.environ.get("MMSERVE_SERVER"),
        help="URL of a running server (or MMSERVE_SERVER); without it the model is loaded here",
    )
    add_model(parser)
    add_engine(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
    engine, limits = EngineConfig(), Limits()
    group = parser.add_argument_group("engine")
    group.add_argument("--device", default=engine.device, help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    group.add_argument("--tp", type=int, default=engine.tp_size, help="GPUs that share the decoder (%(default)s)")
    group.add_argument("--dtype", default=engine.dtype, help="auto, float32, bfloat16, float16 (%(default)s)")
    group.add_argument(
        "--quantization",
        choices=["auto", "none", "int8", "fp8"],
        default=engine.quantization,
        help="the decoder's weights in eight bits: half of bfloat16's memory (auto: as models.yaml says)",
    )
    group.add_argument("--max-model-len", type=int, help="context in tokens (default: the model's own)")
    group.add_argument("--max-running", type=int, default=engine.max_running, help="default: %(default)s requests")
    group.add_argument("--step-tokens", type=int, default=engine.step_tokens, help="tokens in a step (%(default)s)")
    group.add_argument("--kv-slots", type=int, help="tokens that the KV cache holds (default: what memory allows)")
    group.add_argument(
        "--memory-fraction", type=float, default=engine.memory_fraction, help="of a GPU's free memory (%(default)s)"
    )
    group.add_argument("--tier-bytes", type=int, default=1 << 30, help="second cache tier, 0 for none (%(default)s)")
    group.add_argument("--tier-folder", help="where a CPU's second tier has its file (default: the temporary folder)")
    group = parser.add_argument_group("limits")
    group.add_argument("--max-queue", type=int, default=limits.max_queue, help="requests at once (%(default)s)")
    group.add_argument("--max-pictures", type=int, default=limits.max_pictures, help="per request (%(default)s)")
    group.add_argument("--max-captions", type=int, default=limits.max_captions, help="per request (%(default)s)")
    group.add_argument("--max-picture-bytes", type=int, default=limits.max_picture_bytes, help="default: %(default)s")
    group.add_argument("--max-kept-bytes", type=int, default=limits.max_kept_bytes, help="sent once (%(default)s)")
    group.add_argument("--max-picture-pixels", type=int, default=limits.max_picture_pixels, help="default: %(default)s")
    group.add_argument("--max-videos", type=int, default=limits.max_videos, help="per request (%(default)s)")
    group.add_argument("--max-video-bytes", type=int, default=limits.max_video_bytes, help="default: %(default)s")
    group.add_argument("--max-video-pixels", type=int, default=limits.max_video_pixels, help="a frame (%(default)s)")
    group.add_argument("--max-video-seconds", type=float, default=limits.max_video_seconds, help="default: %(default)s")
    group.add_argument("--max-video-frames", type=int, default=limits.max_video_frames, help="seen (%(default)s)")
    group.add_argument("--max-sounds", type=int, default=limits.max_sounds, help="per request (%(default)s)")
    group.add_argument("--max-sound-bytes", type=int, default=limits.max_sound_bytes, help="default: %(default)s")
    group.add_argument("--max-sound-seconds", type=float, default=limits.max_sound_seconds, help="default: %(default)s")


def add_address(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s; 0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")


@asynccontextmanager
async def backend_client(arguments: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client of the server that was named, or of one without sockets in this process."""
    if arguments.server:
        async with AsyncClient(arguments.server, api_key=os.environ.get("MMSERVE_API_KEY")) as client:
            yield client
        return
    from web.app import create_app

    async with local_service(arguments) as service:
        transport = httpx.ASGITransport(create_app(service))
        async with AsyncClient(transport=transport) as client:
            yield client


@asynccontextmanager
async def local_service(arguments: argparse.Namespace, load: Load = load_here) -> AsyncIterator[Service]:
    """The model loaded and its engine running, in this process unless ``load`` says otherwise, until the block ends."""
    # In threads, here and below: whoever listens already goes on answering, if only that the model is loading.
    offline = getattr(arguments, "offline", False)
    checkpoint = await asyncio.to_thread(lambda: load_registry().resolve(arguments.model, offline=offline))
    if arguments.max_model_len is not None:
        if not 1 < arguments.max_model_len <= checkpoint.max_model_len:
            raise ConfigError(f"--max-model-len must be 2 to {checkpoint.max_model_len} for {checkpoint.name}")
        checkpoint = dataclasses.replace(checkpoint, max_model_len=arguments.max_model_len)
    config, limits = _engine_config(arguments), service_limits(arguments)
    parts = await load(checkpoint, config, limits)
    # Imported here: the commands that only talk to a server never need them.
    from mmserve.grammar.judging import JudgeProcess
    from web.operations.metrics import ServiceMetrics
    from web.operations.observed import ObservedEngine
    from web.operations.tracing import start_tracing
    from web.service import ServedModel, Service

    name = getattr(arguments, "served_model_name", None) or checkpoint.name
    card = checkpoint.path / "README.md"
    examples = Path(__file__).parent / "assets" / "examples"
    metrics = ServiceMetrics()
    judge = JudgeProcess()
    try:
        tracing = start_tracing(name, __version__, getattr(arguments, "otlp_traces_endpoint", None))
        yield Service(
            model=ServedModel(
                name,
                checkpoint.description,
                card.read_text(encoding="utf-8") if card.is_file() else "",
                family=checkpoint.family,
                media=parts.prompts.layout.kinds,
            ),
            prompts=parts.prompts,
            engine=ObservedEngine(parts.engine, metrics, tracing),
            max_model_len=parts.max_model_len,
            limits=limits,
            sampling=checkpoint.sampling,
            examples=examples if checkpoint.name == DEFAULT_MODEL else None,
            judge=judge,
            metrics=metrics,
            tracing=tracing,
        )
    finally:
        judge.close()
        await parts.engine.close()


def _engine_config(arguments: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        device=arguments.device,
        tp_size=arguments.tp,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        max_running=arguments.max_running,
        step_tokens=arguments.step_tokens,
        kv_slots=arguments.kv_slots,
        memory_fraction=arguments.memory_fraction,
        tier_bytes=arguments.tier_bytes,
        tier_folder=arguments.tier_folder,
    )


def service_limits(arguments: argparse.Namespace) -> Limits:
    """What one request may bring. Raises ``ConfigError``."""
    return Limits(
        max_picture_bytes=arguments.max_picture_bytes,
        max_picture_pixels=arguments.max_picture_pixels,
        max_pictures=arguments.max_pictures,
        max_videos=arguments.max_videos,
        max_video_bytes=arguments.max_video_bytes,
        max_video_pixels=arguments.max_video_pixels,
        max_video_seconds=arguments.max_video_seconds,
        max_video_frames=arguments.max_video_frames,
        max_sounds=arguments.max_sounds,
        max_sound_bytes=arguments.max_sound_bytes,
        max_sound_seconds=arguments.max_sound_seconds,
        max_captions=arguments.max_captions,
        max_queue=arguments.max_queue,
        max_kept_bytes=arguments.max_kept_bytes,
        **limits_of(arguments),
    )


def plain_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that are values, which another process can be sent; not the parser nor the command."""
    plain = (bool, int, float, str, Path, list, type(None))
    return {name: value for name, value in vars(arguments).items() if isinstance(value, plain)}


@asynccontextmanager
async def listening(service: Service, arguments: argparse.Namespace) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """The server accepting connections, and its URL. Raises ``ConfigError`` where it cannot listen."""
    from web.app import create_app

    async with accepting(create_app(service), arguments) as found:
        yield found


@asynccontextmanager
async def accepting(
    app: ASGIApp, arguments: argparse.Namespace, *, own_signals: bool = False
) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """``listening``, for any application. With ``own_signals`` the caller handles them, not uvicorn.

    What is under way when the block ends has ``_CLOSING_SECONDS`` left where the caller handles signals.
    """
    import uvicorn

    from mmserve.cli_protocol import patient_for

    listener = _listener(arguments.host, arguments.port)
    limits = Limits(**limits_of(arguments))
    grace = _CLOSING_SECONDS if own_signals else None
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http=patient_for(limits.header_seconds, limits.upload_seconds),
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_graceful_shutdown=grace,
    )
    server = uvicorn.Server(settings)
    if own_signals:
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(server.serve([listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    port = listener.getsockname()[1]
    host = "127.0.0.1" if arguments.host in ("0.0.0.0", "::") else arguments.host
    try:
        yield server, f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); another program may use the port: try --port 0"
        ) from None


async def until_stopped(server: uvicorn.Server) -> None:
    """Return once a signal has told the server to end."""
    while not server.should_exit:
        await asyncio.sleep(0.1)
