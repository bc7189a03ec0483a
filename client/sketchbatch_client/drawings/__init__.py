"""Drawings of every kind become bitmaps: files, strokes and pictures, drawn as the training data is drawn."""
