"""Evaluation: scores and their protocols."""
