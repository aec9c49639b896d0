"""Sources that manifests are made from, one file for each kind."""
