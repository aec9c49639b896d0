"""Tasks: what each stage reads, builds, feeds and validates."""
