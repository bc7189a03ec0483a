"""Drawings from Google's bucket to a folder: `bucket` and `order` -> `fetching` -> `class_file` -> `download`."""
