"""Download drawings from Google's bucket: `fetch_request` -> `fetching` -> `class_file` -> `download`."""
