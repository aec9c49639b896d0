"""Metrics of generated texts, which validation computes during training."""
