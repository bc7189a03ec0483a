"""The gRPC contract of Sketchbatch; the stubs beside the .proto are made by `make protos`, never edited."""
