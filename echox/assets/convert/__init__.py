"""Converters, one module a source format: `convert(source, target)` writes a loadable folder."""
