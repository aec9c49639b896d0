"""Engine: the training loop, one duty a file."""
