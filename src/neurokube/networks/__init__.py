"""Network architectures, and model bundles: weights with a card.

`bundle` needs no torch; what does is imported where it is used.
"""

from .bundle import SHIPPED, Bundle, Card, load_bundle, write_bundle
from .normalization import Normalization

__all__ = ["SHIPPED", "Bundle", "Card", "Normalization", "load_bundle", "write_bundle"]
