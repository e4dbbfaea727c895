"""G-ACIL, also GACL. Zhuang, Chen, Fang, He, Tong, Wei and others, GACL: Exemplar-Free Generalized Analytic Continual
Learning, NeurIPS 2024.

For streams in which classes return and nobody says when a task ends. The update has two parts (eq. 8-12), one from the
labels of classes not met before and the exposed-class label gain from those met before; their sum is the ridge
regression of all data so far, in whatever pieces they came. Each image counts once (the released script repeats each
batch three times, which is the same as a third of gamma).

The paper's algorithm starts the recursion at gamma I where its equations and code have I / gamma; so does this. The
random layer is uniform as in the code, see ``init``; the matrix is carried by half. On streams, with features of a
pre-trained transformer, it was published with a width of 5,000 and a gamma of 100. The authors' program for a ResNet-32
(github.com/ZHUANGHP/Analytic-continual-learning, 156bc02f) has 8,192 and 0.1, as for ACIL, and so have the defaults:
gamma goes with the scale of the features.
"""

from __future__ import annotations

from cil.learning.frozen import RandomAnalytic


class GACIL(RandomAnalytic):
    """Regress the labels of new and returning classes on random ReLU features of a frozen backbone.

    Both parts of the update (``cil.ops.closed_form.ridge.decompose``) are learned together, since regression is linear
    in them.
    """
