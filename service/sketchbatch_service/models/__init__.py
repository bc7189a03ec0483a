"""Model files: found, loaded, checked and replaced while the service runs."""
