"""Generation: from a spoken question to a spoken answer."""
