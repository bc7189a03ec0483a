"""Implement the RPCs: the classifier, the Open Inference Protocol and health."""
