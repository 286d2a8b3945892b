"""Define feature distillation with learned links between layers (AFD)."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Layer, LayerList, Linear

from paddlelite_callbacks.distill.losses.features import attention_map, resized

__all__ = ["AttentionFeatureLoss"]


class AttentionFeatureLoss(Layer):
    """Attention-based feature distillation (Ji 2021, arXiv:2102.02973).

    ``mean_n Σ_t Σ_s α_nts mean((Q(h_t) - Q(h_s))²)``, a variant of AFD.

    ``Q`` is the map of attention transfer (as in the loss ``attention``), the student's resized to the teacher's map.
    ``α_nt = softmax over s of (q_nt · W k_ns + p_t · p_s) / √d``, with the query ``q = relu(W_t pool(h_t))``, the key
    ``k = relu(W_s pool(h_s))``, pooled over positions, and an embedding ``p`` of each layer: all trained. Unlike the
    authors' code it has no batch norms, so that it works with any batch size.

    Use it as ``FeatureTerm(("stage2", "stage3"), ("layer2", "layer3", "layer4"), loss=AttentionFeatureLoss())``.

    Args:
        width: Dimension ``d`` of queries and keys.

    Raises:
        ValueError: ``width`` is less than 1.

    Example:
        >>> afd = FeatureTerm(("stage2", "stage3"), ("layer2", "layer3"), loss=AttentionFeatureLoss(), weight=50.0)
        >>> DistillCallback(teacher, features=afd)  # doctest: +SKIP
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}: leave it out for 128.")
        self.width = width
        self.queries, self.keys = LayerList(), LayerList()
        self.bilinear = Linear(width, width, bias_attr=False)

    def prepare_for(self, student: Sequence[list[int]], teacher: Sequence[list[int]]) -> None:
        """Build the parameters for these feature shapes, once.

        Raises:
            ValueError: A feature that is not a map ``[N, C, H, W]``.
        """
        wrong = [shape for shape in [*student, *teacher] if len(shape) != 4]
        if wrong:
            raise ValueError(
                f"AttentionFeatureLoss needs maps [N, C, H, W], got shapes {wrong}: choose layers that return maps."
            )
        if len(self.queries):
            return
        self.queries = LayerList([Linear(shape[1], self.width, bias_attr=False) for shape in teacher])
        self.keys = LayerList([Linear(shape[1], self.width, bias_attr=False) for shape in student])
        self.places_t = self.create_parameter([len(teacher), self.width])
        self.places_s = self.create_parameter([len(student), self.width])

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of lists of maps; the teacher's are detached."""
        alpha = self.weights(student, teacher)
        rows = []
        for j, target in enumerate(x.detach() for x in teacher):
            maps = [resized(feature, list(target.shape[2:])) for feature in student]
            apart = [((attention_map(feature) - attention_map(target)) ** 2).mean(axis=1) for feature in maps]
            rows.append((alpha[:, j] * paddle.stack(apart, axis=1)).sum(axis=1))
        return paddle.stack(rows, axis=1).sum(axis=1).mean()

    def weights(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return ``α`` as ``[N, teacher's layers, student's layers]``; rows sum to 1."""
        pairs = zip(self.queries, teacher, strict=True)
        queries = paddle.stack([F.relu(layer(x.detach().mean(axis=[2, 3]))) for layer, x in pairs], axis=1)
        pairs = zip(self.keys, student, strict=True)
        keys = paddle.stack([F.relu(layer(x.mean(axis=[2, 3]))) for layer, x in pairs], axis=1)
        scores = paddle.bmm(queries, self.bilinear(keys).transpose([0, 2, 1]))
        places = paddle.matmul(self.places_t, self.places_s, transpose_y=True)
        return F.softmax((scores + places.unsqueeze(0)) / self.width**0.5, axis=-1)
