"""Criteria: outputs, batch -> loss and its parts."""
