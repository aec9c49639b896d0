"""The text of one answer as it is decoded: in the decode engine, or by the model's own library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from echox.core.errors import SignalError
from echox.decoding import DecodeEngine
from echox.decoding.greedy_text import decode_steps
from echox.decoding.text import NOT_FINITE, BackboneSteps, text_request
from echox.inference.pipeline import SpeechToSpeechPipeline


class TextStream(ABC):
    """Tokens of a text, each with the state [H] that predicted it, without the end token.

    Attributes:
        ended: whether nothing follows.
        is_cut: whether the limit of tokens ended the text.
        uses_engine: whether `pipeline.text_engine` advances it, or `take` does.
    """

    uses_engine: bool
    ended: bool = False
    is_cut: bool = False

    @abstractmethod
    def take(self) -> list[tuple[int, Tensor]]:
        """Return the tokens that are new, and their states.

        Raises:
            SignalError: scores are NaN or infinite.
        """

    def cancel(self) -> None:
        """Free what the text holds; nothing follows."""
        self.ended = True


class EngineText(TextStream):
    """A text in the decode engine, where it shares its steps with others."""

    uses_engine = True

    def __init__(
        self,
        engine: DecodeEngine[BackboneSteps],
        prompt: Tensor,
        limit: int,
        parts: tuple[int, ...] = (),
    ) -> None:
        """Ask for the text.

        Args:
            engine: of the language model.
            prompt: [P, H].
            limit: text tokens at most, the end token included.
            parts: of the prompt, as a `Request` has them.
        """
        self._engine, self._taken = engine, 0
        self._ticket = engine.add(text_request(engine.steps, prompt, limit, parts=parts))

    def take(self) -> list[tuple[int, Tensor]]:
        """Return the tokens that are new; see `TextStream.take`."""
        if self.ended:
            return []
        progress = self._engine.progress(self._ticket, self._taken)
        if progress.failed:
            raise SignalError(NOT_FINITE.format("of this answer"))
        if progress.states is None:
            raise TypeError("the engine of texts keeps no states")
        tokens = progress.tokens[:, 0].tolist()
        self._taken += len(tokens)
        self.ended = progress.ended
        has_end = bool(tokens) and tokens[-1] in self._engine.steps.stop_ids
        self.is_cut = self.ended and not has_end
        return list(zip(tokens[:-1] if has_end else tokens, progress.states))

    def cancel(self) -> None:
        """Free the slot; see `TextStream.cancel`."""
        super().cancel()
        self._engine.cancel([self._ticket])


class LibraryText(TextStream):
    """A text that the model's own library decodes, one token for every `take`."""

    uses_engine = False

    def __init__(
        self, pipeline: SpeechToSpeechPipeline, prompt: Tensor, mask: Tensor, limit: int
    ) -> None:
        """Begin the text.

        Args:
            pipeline: whose language model it is.
            prompt: [P, H], mask: bool [P], True at positions that may be attended to.
            limit: text tokens at most, the end token included.
        """
        backbone = pipeline.backbone
        self._pipeline, self._end_id = pipeline, backbone.end_id
        # Some chat templates end a turn by another token than the tokenizer's own end.
        ends = [backbone.end_id, *backbone.other_end_ids]
        self._steps: Iterator[tuple[Tensor, Tensor]] = decode_steps(
            backbone, prompt[None], mask[None], ends, limit
        )

    def take(self) -> list[tuple[int, Tensor]]:
        """Decode a token; see `TextStream.take`."""
        if self.ended:
            return []
        with self._pipeline.autocast():
            step = next(self._steps, None)
        if step is None:
            self.ended = self.is_cut = True
            return []
        token, states = step
        self.ended = int(token) == self._end_id
        return [] if self.ended else [(int(token), states[0])]


class NoText(TextStream):
    """The text of a question that is not answered."""

    uses_engine = False
    ended = True

    def take(self) -> list[tuple[int, Tensor]]:
        """Return nothing; see `TextStream.take`."""
        return []


def text_stream(
    pipeline: SpeechToSpeechPipeline,
    prompt: Tensor,
    mask: Tensor,
    limit: int,
    parts: tuple[int, ...] = (),
) -> TextStream:
    """Begin the text that follows a prompt, decoded as whole answers of the pipeline are.

    Args:
        pipeline: whose language model it is.
        prompt: [P, H], right-padded.
        mask: bool [P], True at positions that may be attended to.
        limit: text tokens at most, the end token included.
        parts: of the prompt, as a `Request` has them.
    """
    engine = pipeline.text_engine
    length = int(mask.sum())
    # By the pipeline's own limit, so that the way is that of whole answers.
    if engine is not None and length + pipeline.max_tokens <= engine.capacity:
        return EngineText(engine, prompt[:length], limit, parts)
    return LibraryText(pipeline, prompt, mask, limit)
