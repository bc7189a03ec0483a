"""Serve a web page for drawing, and classify its drawings."""
