"""The released model as what answers aloud: its cuts, and its unit translator."""

from __future__ import annotations

from torch import Tensor

from echox.core.signals import Spans
from echox.decoding import DecodeEngine, Request, Steps
from echox.models.echo import EchoBase
from echox.models.release.model import ReleaseSpeechLLM
from echox.models.release.unit_decoding import TranslatorSteps, greedy_requests
from echox.models.segmenting import RELEASE_RULE, Cutter, SegmentRule, SegmentsConfig, cut
from echox.models.unit_generation import UnitTokens

SLOTS = 8  # segments decoded together where the caller does not say
MAX_UNIT_TOKENS = 2048  # of a segment; the release's limit


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

    def decode_engine(
        self, longest: int, slots: int | None = None, max_steps: int | None = None
    ) -> DecodeEngine:
        """Build a decode engine of the unit translator; see `EchoBase.decode_engine`."""
        release = self.speech_llm.release
        steps = TranslatorSteps(release.require_translator(), release.tokens.end_id)
        framing = [*release.tokens.before_text(release.compatibility), *release.tokens.after_text()]
        capacity = len(framing) + longest + (max_steps or MAX_UNIT_TOKENS)
        return DecodeEngine(steps, slots=slots or SLOTS, capacity=capacity)

    def segment_requests(
        self,
        hidden: Tensor,
        spans: Spans,
        max_steps: int | None = None,
        text: Tensor | None = None,
        *,
        steps: Steps,
    ) -> dict[int, Request]:
        """Return a request for each segment; see `EchoBase.segment_requests`."""
        release = self.speech_llm.release
        # The padding is that of other positions; the prompt takes the lengths.
        states, lengths = cut(hidden, spans)
        denoised = release.require_translator().denoise(states)
        prompt = release.segment_prompt(denoised, lengths)
        limit = max_steps or MAX_UNIT_TOKENS
        return dict(enumerate(greedy_requests(prompt, release.tokens.end_id, limit)))

    def unit_tokens_in(self, tokens: Tensor, *, ended: bool) -> UnitTokens:
        """Return the units that the tokens name; see `EchoBase.unit_tokens_in`."""
        ids, end_id = tokens[:, 0].tolist(), self.speech_llm.release.tokens.end_id
        units = self.speech_llm.release.tokens.units([each for each in ids if each != end_id])
        # The digits of the next token may belong to the last unit.
        return UnitTokens(units if ended else units[:-1], is_cut=end_id not in ids)
