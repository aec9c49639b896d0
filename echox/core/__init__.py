"""The lowest layer: typed values, errors, configs, registries, files, devices and progress."""
