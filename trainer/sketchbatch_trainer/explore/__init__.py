"""Explore drawings: `exploring` reads files into `drawing_statistics`, which become a page or JSON."""
