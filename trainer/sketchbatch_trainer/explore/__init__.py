"""What raw drawings look like: files -> `exploring` (one pass) -> `figures` -> `page`, or `as_json`."""
