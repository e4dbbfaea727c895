"""Where the data come from and how they are cut into tasks: data sets, class-incremental scenarios, Avalanche."""

from __future__ import annotations

from scenarios.class_incremental import ClassIncremental

__all__ = ["ClassIncremental"]
