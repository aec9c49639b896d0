"""Recipes and presets, installed as `echox_recipes` so that a wheel works without a checkout."""
