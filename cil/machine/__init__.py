"""What computes: device, precision, costs, several processes; nothing of learning."""

from cil import renamed

__getattr__ = renamed.attributes_of("cil.machine.device", {"Compiled": "cil.learning.learner"})
