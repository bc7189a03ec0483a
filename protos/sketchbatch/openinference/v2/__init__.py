"""The messages of the Open Inference Protocol. `make protos` generates this package; never edit it."""
