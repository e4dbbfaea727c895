"""One run: what decides its numbers, its loop over tasks, and how it is interrupted and goes on."""

from cil import renamed

__getattr__ = renamed.attributes_of("cil.experiment.experiment")
