"""SimpleCIL. Zhou, Cai, Ye, Zhan and Liu, Revisiting Class-Incremental Learning with Pre-Trained Models:
Generalizability and Adaptivity are All You Need, IJCV 2024.

Nothing learns: a class's row of a cosine classifier is the mean of its training images' features. The order of tasks
does not matter. A backbone that is not frozen learns in the first task and is frozen then.
"""

from __future__ import annotations

from cil.learning.frozen import CosinePrototypes


class SimpleCIL(CosinePrototypes):
    """Score by the cosine between an image's features and each class's mean feature."""
