"""Process set-up, server, supervisor of worker processes, signals and the probe command."""
