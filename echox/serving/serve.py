"""`echox-serve`: load a model, warm it up, and serve it until it is interrupted."""

from __future__ import annotations

import sys

import torch

from echox.backbones.base import Turn
from echox.core.errors import ConfigError
from echox.core.packages import SERVE_PACKAGES, require
from echox.core.progress import waiting
from echox.inference.answers import USER, Question
from echox.inference.load import load_answering
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.streaming import stream
from echox.serving.access import Access
from echox.serving.config import ServeConfig


def serve(config: ServeConfig) -> None:
    """Serve until interrupted, and print where.

    Raises:
        PackageError: the extra `serve` is not installed.
        ConfigError: the server would be open to others without a key, or the port is taken.
        CheckpointError: the checkpoint cannot be used.
    """
    # Before the model is loaded, which takes its time.
    require(SERVE_PACKAGES)
    access = Access.of(config)
    pipeline = load_answering(
        config.checkpoint,
        device=config.device,
        codec_folder=config.codec_folder,
        encoder_folder=config.encoder_folder,
        backbone_folder=config.backbone_folder,
        max_tokens=config.max_tokens,
    )
    with waiting("warming up"):
        warm_up(pipeline)
    _run(pipeline, config, has_key=bool(access.key))


def warm_up(pipeline: SpeechToSpeechPipeline) -> None:
    """Run every part once, so that the first question does not wait for engines and kernels."""
    # Encoded, and not answered, for it is silent.
    pipeline.answer([torch.zeros(pipeline.rate_hz)])
    for _ in stream(pipeline, Question((Turn(USER, "Hello."),))):
        pass


def _run(pipeline: SpeechToSpeechPipeline, config: ServeConfig, *, has_key: bool) -> None:
    import uvicorn

    from echox.serving.app import Server

    settings = uvicorn.Config(
        Server(pipeline, config).app(),
        host=config.host,
        port=config.port,
        log_level="warning",
        ws_max_size=config.message_bytes,
        # What a client has not read waits here, not in the socket's buffer without end.
        ws_max_queue=16,
        timeout_graceful_shutdown=5,
    )
    listening = settings.bind_socket()
    # Before the address is printed: who connects at once waits, instead of being refused.
    listening.listen(settings.backlog)
    port = listening.getsockname()[1]
    address = f"http://{config.host}:{port}"
    print(f"talk to it: {address}", flush=True)
    print(f"Realtime protocol: ws://{config.host}:{port}/v1/realtime", file=sys.stderr, flush=True)
    if has_key:
        print("clients have to send the API key", file=sys.stderr, flush=True)
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except OSError as error:
        raise ConfigError(
            f"port {config.port} cannot be used: {error.strerror}; set port=..."
        ) from error
