"""Decode loops of a unit decoder: echox's engine and Hugging Face `generate`.

Both have the same weights and prompts, and generate the same number of greedy unit tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import transformers
from torch import Tensor

from echox.core.errors import ConfigError
from echox.core.transformers_compat import on_device
from echox.decoding import DecodeEngine, Impl, Request
from echox.kernels.unit_decode import UnitRequest
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_generation import UnitDecoderSteps

HEAD_CHANNELS = 64  # of one attention head, in every shape
FEED_FACTOR = 4  # feed-forward channels over the body's
TEXT_POSITIONS = 24  # text vectors of a prompt
TEXT_WIDTH = 64  # channels of a text vector; they are projected to the decoder's width

Loop = Callable[[], Tensor]  # unit tokens [B, N] on the host


@dataclass(frozen=True, slots=True)
class LoopProblem:
    """The size of a decoder, and the number of unit tokens it generates.

    A loop generates unit tokens [B, N] with B rows of N unit tokens.
    """

    layers: int
    width: int
    batch: int
    words: int  # size of the unit language
    tokens: int  # unit tokens of each row
    seed: int

    @staticmethod
    def size_of(shape: str) -> tuple[int, int]:
        """Return the layers and the width of a shape written as LxC.

        Raises:
            ConfigError: the shape is written otherwise.
        """
        layers, _, width = shape.partition("x")
        are_numbers = layers.isdigit() and width.isdigit()
        # A width of 0 is a multiple too.
        if not (are_numbers and int(layers) and int(width) and int(width) % HEAD_CHANNELS == 0):
            raise ConfigError(
                f"shape {shape!r} is not LxC (layers x channels, the channels a multiple of "
                f"{HEAD_CHANNELS}); write 4x256"
            )
        return int(layers), int(width)


class LoopComparison:
    """One decoder of random weights with its prompts, and the loops that decode it.

    Prompts are vectors [B, S, C]. The decoder has its prefix form, because Hugging Face `generate`
    has no rule for NEXT marks.

    Args:
        problem: size of the decoder, and of the work.
        device: the loops run on.
        dtype: of the weights.
    """

    def __init__(self, problem: LoopProblem, device: torch.device, dtype: torch.dtype) -> None:
        self.problem = problem
        # On the CPU and in float32, so that all devices and precisions have the same weights.
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
            lengths = torch.full((problem.batch,), TEXT_POSITIONS)
            # [B, S, C] and [B, S + 1, C], of which the prefix form ignores the second.
            prefix, conditioning = decoder.read_text(text, lengths)
        self.decoder = decoder.to(device, dtype)
        self.device, self.dtype = device, dtype
        self._steps = UnitDecoderSteps(self.decoder)
        sampling = UnitRequest(max_length=problem.tokens)
        requests = [
            self._steps.request_for(vectors.to(device), added.to(device), sampling)
            for vectors, added in zip(prefix, conditioning)
        ]
        # Without marks, so that no row ends before its number of unit tokens.
        self.requests: list[Request] = [
            replace(request, sampling=replace(request.sampling, allowed=[(0, problem.words)]))
            for request in requests
        ]

    def calls(self) -> dict[str, Loop]:
        """Return every contender by name, ready to run: each call returns unit tokens [B, N]."""
        calls = {"echox": self._engine_loop(Impl.auto)}
        # What CUDA graphs save, which the CPU does not have.
        if self.device.type == "cuda":
            calls["echox, uncaptured"] = self._engine_loop(Impl.plain)
        model = self._transformers_model()
        for cache in ("dynamic", "static"):
            calls[f"HF generate, {cache} cache"] = self._generate_loop(model, cache)
        return calls

    def _engine_loop(self, impl: Impl) -> Loop:
        engine = DecodeEngine(
            self._steps,
            slots=self.problem.batch,
            capacity=TEXT_POSITIONS + self.problem.tokens,
            dtype=self.dtype,
            impl=impl,
        )
        # Tokens are [N, K] of each request, with one codebook here.
        return lambda: torch.stack(
            [completion.tokens[:, 0] for completion in engine.run(self.requests)]
        )

    def _transformers_model(self) -> transformers.LlamaForCausalLM:
        """The decoder as a language model of transformers, with the same weights."""
        settings = self.decoder.body.config.to_dict() | {
            "vocab_size": self.decoder.unit_vocab_size + 3,  # and the three marks
            "pad_token_id": 0,
        }
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
        model = on_device(model, self.device, self.dtype).eval()
        weights = {
            f"model.{name}": tensor for name, tensor in self.decoder.body.state_dict().items()
        }
        weights |= {
            "model.embed_tokens.weight": self.decoder.words.weight,
            "lm_head.weight": self.decoder.head.weight,
        }
        model.load_state_dict(weights)
        return model

    def _generate_loop(self, model: transformers.LlamaForCausalLM, cache: str) -> Loop:
        inputs = torch.stack([request.inputs for request in self.requests]).to(self.dtype)
        mask = torch.ones(inputs.shape[:2], dtype=torch.int64, device=self.device)  # [B, P]
        decoder, tokens = self.decoder, self.problem.tokens
        options = {
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "do_sample": False,
            # The same restriction as `allowed` above.
            "suppress_tokens": [decoder.begin_id, decoder.end_id, decoder.next_id],
            "pad_token_id": 0,
        }

        @torch.inference_mode()
        def call() -> Tensor:
            # To the host, as the engine's tokens are.
            return model.generate(
                inputs_embeds=inputs,
                attention_mask=mask,
                eos_token_id=None,
                cache_implementation=cache,
                **options,
            ).cpu()

        return call
