"""echox: train, run and extend EchoX, the speech-to-speech language model (arXiv 2509.09174)."""

__version__ = "0.1.0"
