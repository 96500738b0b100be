"""Annotations: what people paint in Paintera, webKnossos, napari, Fiji, IMOD or plain label stacks, as volumes.

Value 0 is 'not annotated', every other value an id.
"""

from .annotation import AnnotationReport, import_annotation

__all__ = ["AnnotationReport", "import_annotation"]
