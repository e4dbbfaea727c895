"""What computes: the device, its precision, its costs, and several processes. Nothing of learning belongs here."""

from cil import renamed

__getattr__ = renamed.attributes_of("cil.machine.device")
