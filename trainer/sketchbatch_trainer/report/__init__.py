"""What runs are worth, on one page: `reporting` -> `quality`, `cost`, `plots`."""
