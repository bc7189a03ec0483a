"""Report on exported runs as one page: `reporting` combines `quality`, `cost` and `learning_curves`."""
