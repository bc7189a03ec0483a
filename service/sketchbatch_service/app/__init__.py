"""Run the service: process set-up, server, supervisor, workers, signals, log and the probe command."""
