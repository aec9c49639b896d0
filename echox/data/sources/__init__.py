"""Where manifests are made from: one file a kind of source."""
