"""Run the probe command as `python -m sketchbatch_service.probe`."""

from .app.probe import main

if __name__ == "__main__":
    main()
