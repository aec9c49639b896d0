"""The speech adapter in the form of the released Soundwave and EchoX checkpoints.

Source: Soundwave (arXiv:2502.12900), EchoX (arXiv:2509.09174).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echox.models.compatibility import PAPER, Compatibility
from echox.models.speech_adapter import AdapterSizes, SpeechAdapter, SpeechAdapterConfig


def released_adapter(
    config: Mapping[str, Any],
    blank: int,
    compatibility: Compatibility = PAPER,
    *,
    layers: int = 1,
    **changed: int,
) -> SpeechAdapter:
    """Build the untrained speech adapter of a config.json.

    Args:
        config: a parsed config.json.
        blank: id of the audio placeholder, CTC's blank.
        compatibility: which of the release's deviations from the paper are computed.
        layers: alignment layers.
        changed: fields of `AdapterSizes` with other values than the release's.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    H = config["hidden_size"]
    shape = SpeechAdapterConfig(
        layers=layers,
        heads=config["num_attention_heads"],
        expected_text=False,
        keep_blanks=True,
        positions=False,
        first_frames=True,
    )
    sizes = {
        "feature_dim": config["adapter_size"],
        "width": H,
        "classes": config["vocab_size"],
        "blank": blank,
        "feed_forward": 2 * H,
    }
    return SpeechAdapter(shape, AdapterSizes(**sizes | changed), compatibility=compatibility)
