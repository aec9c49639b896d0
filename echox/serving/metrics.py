"""What the server counts, in the form of Prometheus."""

from __future__ import annotations

from types import ModuleType

from echox.core.packages import PROMETHEUS

# Seconds, around what people notice in a conversation.
BUCKETS_S = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
DELAYS = {
    "first_text_s": "seconds from the end of a question to the first text of its answer",
    "first_audio_s": "seconds from the end of a question to the first speech of its answer",
    "detection_s": "seconds from the end of speech to its detection",
}


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        """Make the counters.

        Raises:
            PackageError: the extra `serve` is not installed.
        """
        self._library: ModuleType = PROMETHEUS.load()
        self.registry = self._library.CollectorRegistry()
        self.sessions = self._gauge("echox_sessions", "connections that are open")
        self.answers = self._gauge("echox_answers", "answers that are being generated")
        self.events = self._counter("echox_client_events", "events of clients")
        self.refused = self._counter("echox_refused", "connections that were refused or cut off")
        self._delays = {
            name: self._library.Histogram(
                f"echox_{name.removesuffix('_s')}_seconds",
                text,
                buckets=BUCKETS_S,
                registry=self.registry,
            )
            for name, text in DELAYS.items()
        }

    def _gauge(self, name: str, text: str):  # its type is the library's
        return self._library.Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str):  # its type is the library's
        return self._library.Counter(name, text, registry=self.registry)

    def observe(self, name: str, seconds: float) -> None:
        """Count a delay of `DELAYS`."""
        self._delays[name].observe(seconds)

    def text(self) -> bytes:
        """Return all counters as a page for Prometheus."""
        return self._library.generate_latest(self.registry)
