"""Data: manifests, audio, caches, batching."""
