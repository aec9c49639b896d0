"""The server: Realtime sessions over WebSocket, text to speech, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from echox.core.errors import EchoxError
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.service import AnswerService
from echox.serving.access import Access
from echox.serving.config import ServeConfig
from echox.serving.metrics import Metrics
from echox.serving.outbox import Outbox
from echox.serving.realtime import RealtimeSession
from echox.serving.settings import MODEL, EventError
from echox.serving.speech import TYPES, SpeechRequest

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
PROTOCOL = "realtime"
BODY_BYTES = 1 << 16
# Codes of a closed WebSocket; 4401 stands for the 401 that a browser could not see.
NO_KEY, TOO_SLOW, TOO_MANY, IDLE = 4401, 1008, 1013, 1000


class Server:
    """One model and everybody who talks to it."""

    def __init__(self, pipeline: SpeechToSpeechPipeline, config: ServeConfig) -> None:
        """Prepare the server.

        Args:
            pipeline: answers aloud.
            config: of the server.

        Raises:
            ConfigError: it would be open to others without a key.
            PackageError: the extra `serve` is not installed.
        """
        self.pipeline, self.config = pipeline, config
        self.access, self.metrics = Access.of(config), Metrics()
        self.service = AnswerService(pipeline)
        self.sessions = 0
        self.metrics.answers.set_function(lambda: self.service.active)
        self.metrics.sessions.set_function(lambda: self.sessions)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes: list[BaseRoute] = [
            WebSocketRoute("/v1/realtime", self.realtime),
            Route("/v1/audio/speech", self.speech, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.metrics_page),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.service.close)

    # HTTP

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that may not be served; None to one that may."""
        if not self.access.allows_origin(
            request.headers.get("origin"), request.headers.get("host")
        ):
            return _error(403, "pages of this origin may not use this server; set origins=[...]")
        if not self.access.has_key(request.headers):
            return _error(401, "the API key is missing or wrong; send Authorization: Bearer KEY")
        return None

    async def health(self, request: Request) -> Response:
        """Tell that the server is up."""
        return JSONResponse({"status": "ok", "sessions": self.sessions})

    async def models(self, request: Request) -> Response:
        """List the model."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        entry = {"id": MODEL, "object": "model", "created": 0, "owned_by": "echox"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def metrics_page(self, request: Request) -> Response:
        """Show the counters."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def speech(self, request: Request) -> Response:
        """Read a text aloud."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        try:
            wanted = SpeechRequest.of(await _json_of(request))
            tts = await asyncio.to_thread(lambda: self.pipeline.tts)
            chunks = wanted.chunks(tts)
            # The first chunk before the headers are sent: a fault then has its own status.
            first = await asyncio.to_thread(next, chunks, b"")
        except EventError as error:
            return _error(400, str(error), error.param)
        except EchoxError as error:
            return _error(422, str(error))

        async def body() -> AsyncIterator[bytes]:
            yield first
            async for chunk in iterate_in_threadpool(chunks):
                yield chunk

        return StreamingResponse(body(), media_type=TYPES[wanted.format])

    # WebSocket

    async def realtime(self, websocket: WebSocket) -> None:
        """Hold a session of the Realtime protocol."""
        headers, protocols = websocket.headers, websocket.scope.get("subprotocols", [])
        origin = headers.get("origin")
        if not self.access.allows_origin(origin, headers.get("host")):
            self.metrics.refused.inc()
            await websocket.close()  # before it is accepted: HTTP 403
            return
        if not self.access.has_key(headers, protocols):
            await self._refuse_without_key(websocket, is_browser=origin is not None)
            return
        await websocket.accept(PROTOCOL if PROTOCOL in protocols else None)
        if self.sessions >= self.config.sessions:
            self.metrics.refused.inc()
            await websocket.close(TOO_MANY, "the server has all the sessions that it allows")
            return
        self.sessions += 1
        try:
            await self._hold(websocket)
        finally:
            self.sessions -= 1

    async def _refuse_without_key(self, websocket: WebSocket, *, is_browser: bool) -> None:
        self.metrics.refused.inc()
        sentence = "the API key is missing or wrong"
        if is_browser:
            # A browser shows a page nothing of a refused handshake.
            await websocket.accept(PROTOCOL)
            await websocket.close(NO_KEY, sentence)
        else:
            await websocket.send_denial_response(_error(401, sentence))

    async def _hold(self, websocket: WebSocket) -> None:
        outbox, loop = Outbox(self.config.unsent_bytes), asyncio.get_running_loop()

        def post(function: Any) -> None:
            # The loop may have ended while an answer was generated.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function)

        session = RealtimeSession(
            self.service, outbox.put, post, self.config.conversation, self.metrics.observe
        )
        sending = asyncio.create_task(self._send(websocket, outbox))
        receiving = asyncio.create_task(self._receive(websocket, session))
        try:
            await asyncio.wait(
                (sending, receiving),
                timeout=self.config.session_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            session.close()
            outbox.close()
            for task in (sending, receiving):
                task.cancel()
            _log_faults(await asyncio.gather(sending, receiving, return_exceptions=True))
            await self._close(websocket, outbox)

    async def _close(self, websocket: WebSocket, outbox: Outbox) -> None:
        code, reason = IDLE, "the session has ended"
        if outbox.is_full:
            self.metrics.refused.inc()
            code, reason = TOO_SLOW, "the client reads too slowly"
        # Gone already, most often.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close(code, reason)

    async def _send(self, websocket: WebSocket, outbox: Outbox) -> None:
        async for message in outbox.messages():
            await websocket.send_text(message)

    async def _receive(self, websocket: WebSocket, session: RealtimeSession) -> None:
        while True:
            message = await asyncio.wait_for(websocket.receive(), self.config.idle_s)
            if message["type"] != "websocket.receive":
                return
            self.metrics.events.inc()
            content = message.get("text")
            # Bytes are no events; as text they are answered by an error.
            session.handle("" if content is None else content)


def _log_faults(ends: Sequence[BaseException | None]) -> None:
    """Log how the tasks of a connection ended, if it was neither the client's nor the clock's."""
    for end in ends:
        if isinstance(end, Exception) and not isinstance(end, TimeoutError | WebSocketDisconnect):
            log.error("a connection ended with an error", exc_info=end)


async def _json_of(request: Request) -> Any:
    """Read a request's body.

    Raises:
        EventError: it is too large, or not JSON.
    """
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > BODY_BYTES:
            raise EventError(f"the request has more than {BODY_BYTES} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EventError("the request is not JSON that can be read") from error


def _error(status: int, message: str, param: str = "") -> Response:
    fault = {
        "message": message,
        "type": "invalid_request_error",
        "param": param or None,
        "code": None,
    }
    return JSONResponse({"error": fault}, status_code=status)
