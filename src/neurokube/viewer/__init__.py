"""A look at volumes in Neuroglancer, served from this machine and without the internet."""

from .runs import layers_of, view_run
from .server import Server, open_in_browser, serve
from .state import Layer, viewer_state

__all__ = ["Layer", "Server", "layers_of", "open_in_browser", "serve", "view_run", "viewer_state"]
