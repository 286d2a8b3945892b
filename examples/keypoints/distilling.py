"""Create the `DistillCallback` of the keypoint scripts from command-line flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from layouts import COCO_BODY, Layout
from settings import load_weights, network

from paddlelite_callbacks import DistillCallback, FeatureTerm

__all__ = ["add_distill_flags", "distillation", "feature_terms"]


def add_distill_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of distillation."""
    parser.add_argument("--distill-weight", type=float, default=1.0, help="weight of distillation (default: 1)")
    parser.add_argument(
        "--distill-features",
        nargs="+",
        metavar="STUDENT=TEACHER",
        help="layers to compare besides the heatmaps; ':0' after a name takes the first of a list of maps, as in "
        "'backbone.head.projects.3=backbone.stages.2.2:0'",
    )
    parser.add_argument("--feature-loss", default="fitnet", help="loss of these layers (default: fitnet)")
    parser.add_argument("--feature-weight", type=float, default=1e-3, help="weight of these layers (default: 0.001)")


def feature_terms(pairs: list[str] | None, *, loss: str, weight: float) -> list[FeatureTerm] | None:
    """Return the terms of ``STUDENT=TEACHER`` pairs of layer names.

    Args:
        pairs: Pairs of layer names, each optionally with ``:index``.
        loss: Name of the feature loss.
        weight: Weight of each term.

    Raises:
        ValueError: An item is not such a pair.
    """
    terms = []
    for pair in pairs or []:
        student, found, teacher = pair.partition("=")
        if not (student and found and teacher):
            raise ValueError(f"--distill-features takes pairs STUDENT=TEACHER of layer names, got {pair!r}.")
        (ours, mine), (theirs, other) = _layer_and_index(student), _layer_and_index(teacher)
        terms.append(FeatureTerm(ours, theirs, loss=loss, weight=weight, pick=(mine, other)))
    return terms or None


def _layer_and_index(text: str) -> tuple[str, int | None]:
    name, _, index = text.partition(":")
    if index and not index.isdecimal():
        raise ValueError(f"After the colon of {text!r} give the index of a map: 0, 1, ...")
    return name, int(index) if index else None


def distillation(
    flags: argparse.Namespace, name: str, weights: Path, layout: Layout = COCO_BODY, *, resume: str | None = None
) -> DistillCallback:
    """Return the callback with ``name`` as teacher and MSE of the heatmaps as loss."""
    teacher = network(name, layout)
    load_weights(teacher, weights)
    terms = feature_terms(flags.distill_features, loss=flags.feature_loss, weight=flags.feature_weight)
    return DistillCallback(teacher, loss="mse", features=terms, weight=flags.distill_weight, resume=resume)
