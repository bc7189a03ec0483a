"""Train a Keras CNN on drawings and export it as one ONNX file: fetch (or sketch), explore, train, export, report.

A run is a folder. Each step reads files that earlier steps wrote into the run; `run.py` names all files of a run.
The package `adapt` turns a model from another tool into the same kind of file.
"""
