"""Old import paths: what was here is in `export` and `benchmark`."""
