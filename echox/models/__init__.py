"""Models: speech adapter, speech LLM, unit decoder, denoising adapter and Echo."""
