"""Training tasks, a folder each: what a stage reads, builds, feeds to its model and validates."""
