"""The subcommands of `sketchbatch`; `cli` assembles them."""
