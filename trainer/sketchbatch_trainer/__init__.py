"""Train a Keras CNN on drawings and export it as one ONNX file: fetch (or sketch), explore, train, export, report.

A run is a folder. Each step reads the files that earlier steps wrote there; `run.py` names these files.
"""
