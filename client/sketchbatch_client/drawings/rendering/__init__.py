"""Turn lines into 28x28 bitmaps: the layout in the bitmap, the two renderers, and the lines of a picture."""
