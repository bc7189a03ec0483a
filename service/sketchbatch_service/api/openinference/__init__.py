"""Implement the Open Inference Protocol, for clients of Triton and KServe.

A request passes through `servicer`, `codec` and the model's batcher; `descriptions` builds metadata and statistics.
"""
