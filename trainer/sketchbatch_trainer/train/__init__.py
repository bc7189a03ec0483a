"""Train a Keras model on drawings: `recipes` -> `training` -> `training_loop`, with `networks` and `augmentation`."""
