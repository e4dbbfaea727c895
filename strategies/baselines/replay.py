"""Replay: learn new images and exemplars together.

The rehearsal baseline of Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024; the idea is older (Ratcliff,
Connectionist Models of Recognition Memory, Psychological Review 1990). Exemplars are chosen by ``memory.selection``;
batches are not balanced between old and new classes. On a stream without boundaries each batch is joined by as many
exemplars drawn at random, which is experience replay (Chaudhry et al., On Tiny Episodic Memories in Continual Learning,
2019); exemplars are chosen after each piece of the stream, not after each batch.
"""

from __future__ import annotations

from typing import ClassVar

from cil.learning.strategy import Strategy


class Replay(Strategy):
    """Minimise cross-entropy over all classes seen, on new images and exemplars shuffled together."""

    needs_boundaries: ClassVar[bool] = False
