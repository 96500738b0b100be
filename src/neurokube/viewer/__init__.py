"""A look at volumes in Neuroglancer, served from this machine and without the internet."""

from .mistakes import serve_evaluation, show_mistakes
from .runs import layers_of, view_run
from .server import Server, open_in_browser, serve
from .state import Layer, View, look_at, viewer_state

__all__ = [
    "Layer",
    "Server",
    "View",
    "layers_of",
    "look_at",
    "open_in_browser",
    "serve",
    "serve_evaluation",
    "show_mistakes",
    "view_run",
    "viewer_state",
]
