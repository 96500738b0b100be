"""NeuroKube reconstructs brain tissue from volume electron microscopy, block by block."""

from importlib.metadata import version

__version__ = version("neurokube")
