"""Collect and serve metrics, and send traces."""
