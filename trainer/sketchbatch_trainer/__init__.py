"""Turns drawings into one ONNX file: fetch (or sketch), prepare, build, fit, export, report.

A run is a folder; each step reads what the steps before it left there (`run.py` names the files).
"""
