"""Replay: learn new images and exemplars together.

The rehearsal baseline of Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024; the idea is older (Ratcliff,
Connectionist Models of Recognition Memory, Psychological Review 1990). Exemplars are chosen by ``memory.selection``;
batches are not balanced between old and new classes.
"""

from __future__ import annotations

from cil.strategy import Strategy


class Replay(Strategy):
    """Minimise cross-entropy over all classes seen, on new images and exemplars shuffled together."""
