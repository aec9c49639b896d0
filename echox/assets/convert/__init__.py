"""One file per source format; each has `convert(source, target)`: files of a wheel in, a folder that loads out."""
