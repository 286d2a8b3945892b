"""Registry of distillation losses and what each needs.

============= ============================================================ =========== ==============================
name          compares                                                     temperature outputs or features
============= ============================================================ =========== ==============================
kl            softmax of class scores (Hinton 2015)                        4           [N, C], [N, L, C], [N, C, H, W]
jsdiv         the same, symmetrised (PaddleClas)                           1           [N, C], [N, L, C], [N, C, H, W]
dml           the same at temperature 1 (Zhang 2018)                       -           [N, C], [N, L, C], [N, C, H, W]
bce           sigmoid of each score: multi-label outputs                   1           any, scores before the sigmoid
dkd           class scores, target class apart (Zhao 2022)                 4           as kl, labels [N] or [N, C]
dist          correlations of class scores (Huang 2022)                    1           [N, C]
cwd           softmax over the positions of each channel (Shu 2021)        4           [N, C, H, W]
mse, l2       squared differences, mean                                    -           any
l1, smooth_l1 absolute differences, Huber's                                -           any
heatmap_mse   squared differences of heatmaps, weights from the labels     -           [N, K, H, W], label [N, K]
attention     maps of mean squares over channels (Zagoruyko 2017)         -           [N, C, H, W], C may differ
rkd           distances and angles between the samples (Park 2019)         -           [N, ...], N >= 2
fitnet        squared differences behind a projection (Romero 2015)        -           any, C and size may differ
============= ============================================================ =========== ==============================

Labels of ``dkd`` are class indices (``[N]``, ``[N, L]``, ``[N, H, W]``) or soft ones in the shape of the scores (MixUp,
CutMix, label smoothing), of which the largest counts. Classes lie along axis 1 of maps ``[N, C, H, W]``, else along the
last axis; where the task loss is a ``paddle.nn.CrossEntropyLoss``, along its ``axis``, and its ``ignore_index`` is that
of ``dkd``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paddle import Tensor

from paddlelite_callbacks.distill.losses import features, logits
from paddlelite_callbacks.distill.losses.logits import check_temperature
from paddlelite_callbacks.errors import near_names

__all__ = ["LOSSES", "AnyLoss", "LossSpec", "spec_of"]

AnyLoss = Callable[..., Tensor]  # (student, teacher) or (student, teacher, label) -> scalar


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """Loss function with its requirements.

    Args:
        function: ``(student, teacher) -> scalar``, or with a third argument where ``label`` is given.
        name: Name in errors and ``logs``.
        tempered: Whether it takes ``temperature=``.
        label: Index of the batch's label that it takes as third argument; ``None`` for none.
        classes: Whether it compares class scores and takes their ``axis=``.
        ignores: Whether it takes ``ignore_index=``, the class of unlabelled positions.
        same: ``"shape"`` if both tensors must have one shape, ``"positions"`` if their channels may differ, ``"batch"``
            if all but the batch may: a projection bridges only what may not.
    """

    function: AnyLoss
    name: str
    tempered: bool = False
    label: int | None = None
    classes: bool = False
    ignores: bool = False
    same: str = "shape"


LOSSES: dict[str, LossSpec] = {
    spec.name: spec
    for spec in (
        LossSpec(function=logits.kl, name="kl", tempered=True, classes=True),
        LossSpec(function=logits.jsdiv, name="jsdiv", tempered=True, classes=True),
        LossSpec(function=logits.dml, name="dml", classes=True),
        LossSpec(function=logits.bce, name="bce", tempered=True),
        LossSpec(function=logits.dkd, name="dkd", tempered=True, label=0, classes=True, ignores=True),
        LossSpec(function=logits.dist, name="dist", tempered=True),
        LossSpec(function=features.cwd, name="cwd", tempered=True),
        LossSpec(function=logits.mse, name="mse"),
        LossSpec(function=logits.mse, name="l2"),
        LossSpec(function=logits.l1, name="l1"),
        LossSpec(function=logits.smooth_l1, name="smooth_l1"),
        LossSpec(function=features.heatmap_mse, name="heatmap_mse", label=-1),
        LossSpec(function=features.attention, name="attention", same="positions"),
        LossSpec(function=features.rkd, name="rkd", same="batch"),
        LossSpec(function=features.fitnet, name="fitnet"),
    )
}


def spec_of(loss: str | AnyLoss, *, temperature: float | None = None, label: int | None = None) -> LossSpec:
    """Return the registry entry of a name, or a spec for a callable.

    Args:
        loss: Key of `LOSSES`, or a callable (also a ``paddle.nn.Layer``) ``(student, teacher[, label]) -> scalar``.
        temperature: Temperature of a tempered loss; ``None`` for its own default.
        label: Index of the batch's label that is the third argument; ``None`` for the loss's own choice, which is none
            for a callable.

    Raises:
        TypeError: Neither a name nor callable.
        ValueError: Unknown loss, a temperature that is not positive or for a loss without one, a label for a loss
            without one.
    """
    if not isinstance(loss, str):
        return _spec_of_callable(loss, temperature, label)
    key = loss.lower()
    if key not in LOSSES:
        raise ValueError(
            f"Unknown distillation loss {loss!r}; near names: {near_names(key, LOSSES)}. Choose one, or pass a "
            "callable (student, teacher) -> scalar."
        )
    spec = LOSSES[key]
    if label is not None and spec.label is None:
        takers = [name for name, other in LOSSES.items() if other.label is not None]
        raise ValueError(f"The loss {key!r} takes no label; only {takers} do. Leave it out.")
    return LossSpec(
        function=_tempered(spec, temperature),
        name=spec.name,
        tempered=spec.tempered,
        label=spec.label if label is None else label,
        classes=spec.classes,
        ignores=spec.ignores,
        same=spec.same,
    )


def _spec_of_callable(loss: AnyLoss, temperature: float | None, label: int | None) -> LossSpec:
    if not callable(loss):
        raise TypeError(
            f"loss must be a name or a callable (student, teacher) -> scalar, got {type(loss).__name__}: choose one "
            f"of {list(LOSSES)}, or write a callable."
        )
    if temperature is not None:
        raise ValueError("temperature needs a named loss: build it into your own loss function.")
    return LossSpec(function=loss, name=getattr(loss, "__name__", type(loss).__name__), label=label, same="any")


def _tempered(spec: LossSpec, temperature: float | None) -> AnyLoss:
    if temperature is None:
        return spec.function
    if not spec.tempered:
        tempered = [name for name, other in LOSSES.items() if other.tempered]
        raise ValueError(f"The loss {spec.name!r} has no temperature; only {tempered} have. Leave it out.")
    check_temperature(temperature)

    def loss(*tensors: Tensor, **options: int) -> Tensor:
        return spec.function(*tensors, temperature=temperature, **options)

    return loss
