"""EchoX as its authors published it: the same parts, with the release's own ways of computing as named settings."""
