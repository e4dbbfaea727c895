"""One run: what decides its numbers, its loop over tasks, interruption and continuation; not where its files lie."""

from cil import renamed

__getattr__ = renamed.attributes_of("cil.experiment.experiment")
