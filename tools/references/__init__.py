"""Make the source of the site of `make docs`; `python -m tools.references FOLDER` writes it."""
