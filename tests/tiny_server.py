"""A server of a tiny random model, in a thread, on a free port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.serving.app import Server
from echox.serving.config import ServeConfig


@contextlib.contextmanager
def running(pipeline: SpeechToSpeechPipeline, **settings: object) -> Iterator[tuple[Server, int]]:
    """Serve a pipeline within a block: -> the server and its port."""
    import uvicorn

    config = ServeConfig(port=0, **settings)
    server = Server(pipeline, config)
    listening = socket.create_server(("127.0.0.1", 0))
    runner = uvicorn.Server(
        uvicorn.Config(
            server.app(),
            log_level="error",
            ws_max_size=config.message_bytes,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    try:
        yield server, listening.getsockname()[1]
    finally:
        runner.should_exit = True
        thread.join()
