"""What stands between the matrix products of one decoding step of a Llama layer, each as one launch.

Its plain form, which tests hold it to, is `echox.models.unit_loop.body.CachedBody.step`.
"""

from echox.kernels.decoder_step.op import added_norm, gated, turned

__all__ = ["added_norm", "gated", "turned"]
