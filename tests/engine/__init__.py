"""Tests of echox.engine."""
