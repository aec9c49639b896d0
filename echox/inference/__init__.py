"""Inference: from spoken or typed questions to answers in text and speech."""
