"""The gRPC contract of Sketchbatch. `make protos` generates the stubs in this package; never edit them."""
