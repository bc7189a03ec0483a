"""Read drawings from files of every format, and render strokes and pictures as bitmaps like the training data."""
