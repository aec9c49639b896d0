"""The doors of echox: thin command line entries; all work happens in `echox`."""
