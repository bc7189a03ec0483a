"""Download drawings from Google's storage bucket: `fetch_request` -> `fetching` -> `class_file` -> `download`."""
