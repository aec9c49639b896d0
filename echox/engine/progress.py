"""What a person sees while a stage trains: a bar on a terminal, a line now and then elsewhere, nothing on other ranks."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

# Seconds between lines where there is no terminal to draw a bar on.
LINE_EVERY_S = 30.0


class Progress:
    """The position of a run in its steps, with loss, learning rate, throughput and time left."""

    def __init__(self, stage: str, *, step: int, steps: int, speaks: bool) -> None:
        self.stage = stage
        self.step = step
        self.steps = steps
        self.speaks = speaks
        self._began_s = self._line_s = time.monotonic()
        self._first = step
        on_terminal = speaks and sys.stderr.isatty()
        self._bar = tqdm(desc=stage, total=steps, initial=step, unit="step", dynamic_ncols=True) if on_terminal else None

    def update(self, *, loss: float, lr: float, targets_per_s: float, examples_per_s: float) -> None:
        """One step is done; throughputs are per second since the last line of metrics."""
        self.step += 1
        facts = f"loss {loss:.4g}, lr {lr:.2e}, {targets_per_s:,.0f} targets/s, {examples_per_s:,.1f} examples/s"
        if self._bar is not None:
            self._bar.set_postfix_str(facts, refresh=False)
            self._bar.update()
        elif self.speaks and (time.monotonic() - self._line_s > LINE_EVERY_S or self.step == self.steps):
            self._line_s = time.monotonic()
            print(f"{self.stage} {self.step}/{self.steps}: {facts}, {self._time_left()} left", file=sys.stderr, flush=True)

    def _time_left(self) -> str:
        per_step_s = (time.monotonic() - self._began_s) / (self.step - self._first)
        return tqdm.format_interval(per_step_s * (self.steps - self.step))

    def say(self, sentence: str) -> None:
        """A sentence about this stage, above the bar."""
        if self.speaks:
            say(f"{self.stage}: {sentence}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def say(sentence: str) -> None:
    """A sentence on stderr that does not break a bar."""
    tqdm.write(sentence, file=sys.stderr)
    sys.stderr.flush()
