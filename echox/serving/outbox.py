"""Events that wait for a client, as many as it may let wait."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any


class Outbox:
    """A queue of messages with a limit in bytes; a client that reads too slowly overflows it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._bytes = limit_bytes, 0
        self._messages: deque[str] = deque()
        self._changed = asyncio.Event()
        self.is_full = False
        self.is_closed = False

    def put(self, event: dict[str, Any]) -> None:
        """Add an event; beyond the limit it is dropped, and the box is full for good."""
        message = json.dumps(event)
        if self.is_full or self._bytes + len(message) > self._limit_bytes:
            self.is_full = True
        else:
            self._messages.append(message)
            self._bytes += len(message)
        self._changed.set()

    def close(self) -> None:
        """Let `messages` end once what waits was taken."""
        self.is_closed = True
        self._changed.set()

    async def messages(self) -> AsyncIterator[str]:
        """Yield messages in their order, until the box is full or closed."""
        while not self.is_full:
            if self._messages:
                message = self._messages.popleft()
                # Counted until it was sent: the caller asks for the next one only then.
                yield message
                self._bytes -= len(message)
                continue
            if self.is_closed:
                return
            self._changed.clear()
            await self._changed.wait()
