"""Benchmarks of kernels against what people use today, one file per subject."""
