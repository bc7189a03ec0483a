"""The messages of the Open Inference Protocol; made by `make protos`, never edited."""
