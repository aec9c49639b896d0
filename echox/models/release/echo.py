"""The released model as what answers aloud: its cuts, and its unit translator."""

from __future__ import annotations

from torch import Tensor

from echox.core.signals import Spans
from echox.decoding import DecodeEngine
from echox.models.echo import EchoBase
from echox.models.release.model import MAX_UNIT_TOKENS, ReleaseSpeechLLM
from echox.models.segmenting import RELEASE_RULE, Cutter, SegmentRule, SegmentsConfig, cut


class ReleaseEcho(EchoBase):
    """A released EchoX behind its encoder; segments are decoded to samples one by one."""

    joins_segments = False
    speech_llm: ReleaseSpeechLLM

    def __init__(self, speech_llm: ReleaseSpeechLLM, rule: SegmentRule = RELEASE_RULE) -> None:
        """Keep the model.

        Args:
            speech_llm: the released model behind its encoder.
            rule: when a segment is cut.
        """
        super().__init__()
        self.speech_llm = speech_llm
        self.cutter = Cutter(SegmentsConfig(rule=rule), speech_llm.backbone)

    def decode_engine(self, longest: int) -> DecodeEngine:
        """Decode engine of the unit translator; see `PublishedEchoX.speech_decode_engine`."""
        return self.speech_llm.release.speech_decode_engine(longest)

    def speak_segments(
        self,
        hidden: Tensor,
        spans: Spans,
        max_steps: int | None = None,
        engine: DecodeEngine | None = None,
        text: Tensor | None = None,
    ) -> list[list[int]]:
        """Generate the units of given segments; see `EchoBase.speak_segments`."""
        if not len(spans.rows):
            return []
        release = self.speech_llm.release
        # The padding is that of other positions; `speak` takes the lengths.
        states, lengths = cut(hidden, spans)
        generated = release.speak(states, lengths, max_steps or MAX_UNIT_TOKENS, engine)
        return [release.tokens.units(row) for row in generated.rows()]
