"""A unit decoder's loop as echox and Hugging Face run it: the same weights, the same prompts, the same number of greedy words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import transformers
from torch import Tensor

from echox.errors import ConfigError
from echox.kernels.unit_decode import UnitRequest
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_loop import Ask, Impl, UnitLoop
from echox.models.unit_loop.text_speech import UnitDecoderSteps

HEAD_CHANNELS = 64  # of one attention head, in every shape
FEED_FACTOR = 4  # feed-forward channels over the body's
TEXT_POSITIONS = 24
TEXT_WIDTH = 64

Loop = Callable[[], Tensor]  # words [B, N] on the host


@dataclass(frozen=True, slots=True)
class LoopProblem:
    """A decoder's size, and what it is to say."""

    layers: int
    width: int
    batch: int
    words: int  # of the unit language
    tokens: int  # of each row
    seed: int

    @staticmethod
    def size_of(shape: str) -> tuple[int, int]:
        """Layers and width of LxC.

        Raises:
            ConfigError: it is something else.
        """
        layers, _, width = shape.partition("x")
        if not (layers.isdigit() and width.isdigit() and int(layers) and int(width) and int(width) % HEAD_CHANNELS == 0):
            raise ConfigError(f"shape {shape!r} is not LxC (layers x channels, the channels a multiple of {HEAD_CHANNELS}); write 4x256")
        return int(layers), int(width)


class Contest:
    """A decoder of random weights in its plain form (Hugging Face knows no NEXT marks), and its prompts."""

    def __init__(self, problem: LoopProblem, device: torch.device, dtype: torch.dtype) -> None:
        self.problem = problem
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(problem.seed)
            config = UnitDecoderConfig(
                layers=problem.layers,
                width=problem.width,
                heads=problem.width // HEAD_CHANNELS,
                feed_forward=FEED_FACTOR * problem.width,
                monotonic=False,
            )
            decoder = UnitDecoder(config, TEXT_WIDTH, problem.words).eval()
            text = torch.randn(problem.batch, TEXT_POSITIONS, TEXT_WIDTH)
            prefix, spoken = decoder.read_text(text, torch.full((problem.batch,), TEXT_POSITIONS))
        self.decoder = decoder.to(device, dtype)
        steps = UnitDecoderSteps(self.decoder)
        request = UnitRequest(max_length=problem.tokens)
        asks = [steps.ask(row.to(device), seen.to(device), request) for row, seen in zip(prefix, spoken)]
        # As many words as were asked for: nothing ends a row.
        self.asks = [replace(ask, request=replace(ask.request, allowed=[(0, problem.words)])) for ask in asks]
        self.device, self.dtype, self._steps = device, dtype, steps

    def calls(self) -> dict[str, Loop]:
        """Every contender, ready to run."""
        ours = {"echox": self._ours(Impl.auto)} | ({"echox, uncaptured": self._ours(Impl.plain)} if self.device.type == "cuda" else {})
        model = self._theirs()
        return ours | {f"HF generate, {cache} cache": self._generate(model, cache) for cache in ("dynamic", "static")}

    def _ours(self, impl: Impl) -> Loop:
        problem = self.problem
        loop = UnitLoop(self._steps, slots=problem.batch, capacity=TEXT_POSITIONS + problem.tokens, dtype=self.dtype, impl=impl)
        asks: list[Ask] = self.asks
        return lambda: torch.stack([spoken.tokens[:, 0] for spoken in loop.run(asks)])

    def _theirs(self) -> transformers.LlamaForCausalLM:
        shape = self.decoder.body.config.to_dict() | {"vocab_size": self.decoder.word_count + 3, "pad_token_id": 0}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(self.device, self.dtype).eval()
        weights = {f"model.{name}": tensor for name, tensor in self.decoder.body.state_dict().items()}
        weights |= {"model.embed_tokens.weight": self.decoder.words.weight, "lm_head.weight": self.decoder.head.weight}
        model.load_state_dict(weights)
        return model

    def _generate(self, model: transformers.LlamaForCausalLM, cache: str) -> Loop:
        inputs = torch.stack([ask.inputs for ask in self.asks]).to(self.dtype)
        mask = torch.ones(inputs.shape[:2], dtype=torch.int64, device=self.device)
        decoder, count = self.decoder, self.problem.tokens
        never = [decoder.begin_id, decoder.end_id, decoder.next_id]
        asked = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "suppress_tokens": never, "pad_token_id": 0}

        @torch.inference_mode()
        def call() -> Tensor:
            return model.generate(inputs_embeds=inputs, attention_mask=mask, eos_token_id=None, cache_implementation=cache, **asked).cpu()

        return call
