"""Speaks the Open Inference Protocol, so that clients of Triton and KServe can ask for classifications.

A request flows `servicer -> codec ->` the model's batcher, and back; `descriptions` answers what is not inference.
"""
