"""How `echox-serve` runs, and the limits that keep it from being filled up."""

from __future__ import annotations

from dataclasses import dataclass, field

from echox.core.errors import ConfigError
from echox.inference.conversation import ConversationLimits

LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(kw_only=True, slots=True)
class ServeConfig:
    """Serve a model to talk to: OpenAI's Realtime protocol, text to speech, and a page at /.

    Raises:
        ConfigError: a number is out of range, or the server would be open to others without a key.
    """

    checkpoint: str = "runs/echo_mini"
    """A run, a finished checkpoint of the echo stage, or a published EchoX folder."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every one of this machine, and needs an api_key."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    api_key: str = ""
    """Key that every client has to send; "" takes ECHOX_API_KEY, and without both none is asked
    for."""
    origins: list[str] = field(default_factory=list)
    """Web pages that may connect beside the server's own, such as https://example.org."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    max_tokens: int | None = None
    """Text tokens of an answer at most; null takes 512 for a published folder and 64 for others."""
    codec_folder: str | None = None
    """Where the codec lies, if it was moved since training."""
    encoder_folder: str | None = None
    """Where the encoder lies, if it was moved since training, or where Whisper lies, for a
    published EchoX folder whose config.json does not say it."""
    backbone_folder: str | None = None
    """Where the language model lies, if it was moved since training."""
    sessions: int = 64
    """Connections at most."""
    idle_s: float = 300.0
    """Seconds without a message after which a connection is closed."""
    session_s: float = 3600.0
    """Seconds that a connection lasts at most."""
    message_bytes: int = 1 << 20
    """Bytes of a message at most."""
    unsent_bytes: int = 8 << 20
    """Bytes that wait for a slow client at most; beyond them its connection is closed."""
    conversation: ConversationLimits = field(default_factory=ConversationLimits)
    """What a conversation keeps."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""

    def __post_init__(self) -> None:
        for name in ("sessions", "idle_s", "session_s", "message_bytes", "unsent_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, and is {getattr(self, name)}")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port must be 0 to 65535, and is {self.port}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, and is {self.max_tokens}")
