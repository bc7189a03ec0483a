"""Says how good a model is on labelled drawings."""
