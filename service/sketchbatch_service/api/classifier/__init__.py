"""Implement the ClassifierService of protos/sketchbatch/v1/classifier.proto."""
