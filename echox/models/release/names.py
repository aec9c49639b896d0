"""Names of weights: the release's, and those of `PublishedEchoX`."""

from __future__ import annotations

# The release's prefixes and ours; the first that fits holds, so longer ones come first.
PREFIXES = (
    ("model.mm_projector1.", "adapter.projector."),
    ("model.asr_transformer_encoder.layers.", "adapter.layers."),
    ("model.out_norm.", "adapter.out_norm."),
    ("model.audio_feature_head.", "adapter.ctc_head."),
    ("model.lbm.encoder_attn.", "adapter.look_back."),
    ("model.lbm.atten_layer_norm.", "adapter.look_back_norm."),
    ("unit_translator.model.embed_tokens.", "translator.text_rows."),
    ("unit_translator.model.", "translator.body."),
    ("unit_translator.unit_embedding.", "translator.unit_rows."),
    ("unit_translator.adapter.", "translator.adapter."),
    ("unit_translator.lm_head.", "translator.head."),
    ("unit_translator.aligner_MLP.0.", "translator.denoiser.up."),
    ("unit_translator.aligner_MLP.3.", "translator.denoiser.down."),
    # As checkpoints of training named the two before.
    ("unit_translator.aligner_MLP.", "translator.denoiser."),
    ("lm_head.", "language.head."),
    ("model.", "language.body."),
)
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
TEXT_ROWS = "unit_translator.model.embed_tokens.weight"
DENOISER = "unit_translator.aligner_MLP."
INNER_WHISPER = "model.audio_tower."  # Soundwave's encoder lies among its own weights


def our_name(name: str) -> str:
    """Name in `PublishedEchoX` of a tensor of the release."""
    for theirs, ours in PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def their_name(name: str) -> str:
    """Name in the release of a tensor of `PublishedEchoX`; the inverse of `our_name`."""
    for theirs, ours in PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
