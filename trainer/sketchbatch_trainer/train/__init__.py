"""Drawings to a Keras model: `recipes` -> `training` (prepare, build, fit, keep) -> `networks`, `fitting`."""
