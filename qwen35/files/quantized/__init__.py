"""Weights of others that are stored in few bits: which schemes are read, and their values."""

from .formats import MEMBERS, open_weight
from .scheme import Scheme, scheme_of
from .weight import QuantizedFile, Quantizing

__all__ = ["MEMBERS", "QuantizedFile", "Quantizing", "Scheme", "open_weight", "scheme_of"]
