"""Find, load and check model files, and replace models while the service runs."""
