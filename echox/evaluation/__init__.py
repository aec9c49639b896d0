"""Evaluation: scores with their protocols, and the report of a finished run."""
