"""EchoX as its authors released it: modules, settings and file format of the checkpoints."""
