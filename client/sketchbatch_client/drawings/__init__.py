"""Reads drawings from files of every format, and renders strokes and pictures as bitmaps like the training data."""
