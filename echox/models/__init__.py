"""Models: speech adapter, speech LLM, unit decoder, Echo."""
