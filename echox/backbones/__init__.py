"""Backbones: causal language models, embeddings -> hidden states."""
