"""Fused kernels of a Llama layer's decoding step, for what lies between its matrix products.

The tests compare them with the plain form, `echox.decoding.body.PlainBody.step`.
"""

from echox.kernels.decoder_step.op import apply_rotary_and_cache, fused_add_rmsnorm, gated

__all__ = ["fused_add_rmsnorm", "gated", "apply_rotary_and_cache"]
