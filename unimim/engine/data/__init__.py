"""Images from disk or drawn, as uint8 tensors addressed by index."""

from .decode import BadImage, decode
from .quarantine import TooManyBadImages
from .shapes import Shapes
from .sources import ImageSource, in_memory, open_source

__all__ = ["BadImage", "ImageSource", "Shapes", "TooManyBadImages", "decode", "in_memory", "open_source"]
