"""Worked example plugins; see README.md in this folder."""
