"""Images, and which of them come when; not what is learned from them."""

from cil import renamed

__getattr__ = renamed.attributes_of("cil.data.images")
