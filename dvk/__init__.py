"""dvk versions big files and folders beside the code in Git."""

__version__ = "0.1.0"
