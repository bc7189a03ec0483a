"""Read drawings in a column of a Parquet file."""
