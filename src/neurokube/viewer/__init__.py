"""A look at volumes in Neuroglancer, served from this machine and without the internet."""

from .server import Server, open_in_browser, serve
from .state import Layer, viewer_state

__all__ = ["Layer", "Server", "open_in_browser", "serve", "viewer_state"]
