"""The inputs of a job: find the files, open each as a source, and read its rows block by block."""

from .opening import InputOptions as InputOptions
from .opening import find_sources as find_sources
from .sources import Block as Block
from .sources import Reject as Reject
from .sources import Source as Source
