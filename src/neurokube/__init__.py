"""NeuroKube reconstructs brain tissue from volume electron microscopy, block by block."""

from .versions import version

__version__ = version("neurokube")
