"""Who may use the server: keys, and the web pages that may connect."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from echox.core.errors import ConfigError
from echox.serving.config import LOCAL, ServeConfig

VARIABLE = "ECHOX_API_KEY"
# How a page in a browser sends the key, which cannot set headers of a WebSocket.
KEY_PROTOCOL = "openai-insecure-api-key."


@dataclass(frozen=True, slots=True)
class Access:
    """The key that clients have to send, and the origins of pages that may connect."""

    key: str
    origins: frozenset[str]

    @classmethod
    def of(cls, config: ServeConfig) -> Access:
        """Read the access that a config and the environment ask for.

        Raises:
            ConfigError: the server would be open to other machines without a key.
        """
        key = config.api_key or os.environ.get(VARIABLE, "")
        if config.host not in LOCAL and not key:
            raise ConfigError(
                f"host={config.host} opens the server to other machines, which needs a key; set "
                f"api_key=... or {VARIABLE}, or leave host at 127.0.0.1"
            )
        return cls(key, frozenset(origin.rstrip("/") for origin in config.origins))

    def has_key(self, headers: Mapping[str, str], protocols: Iterable[str] = ()) -> bool:
        """Return whether a request has the right key, in the same time whatever it sends.

        Args:
            headers: of the request, by names in lower case.
            protocols: WebSocket subprotocols that it offers.
        """
        if not self.key:
            return True
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        given = [sent.strip()] if scheme.lower() == "bearer" else []
        given += [
            name.removeprefix(KEY_PROTOCOL) for name in protocols if name.startswith(KEY_PROTOCOL)
        ]
        # All of them are compared, so that the time tells nothing.
        return any([hmac.compare_digest(each.encode(), self.key.encode()) for each in given])

    def allows_origin(self, origin: str | None, host: str | None) -> bool:
        """Return whether a page of this origin may connect.

        Args:
            origin: header of a browser; None for other programs.
            host: header that names this server.
        """
        if origin is None:
            return True
        # A page of this server: without the check any page could talk to a server on this machine.
        return origin.rstrip("/") in self.origins or urlsplit(origin).netloc == host
