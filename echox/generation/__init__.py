"""Generation: from a question's waveform, or a typed text, to an answer that is heard."""
