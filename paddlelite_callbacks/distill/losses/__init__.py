"""Distillation losses and their registry."""

from paddlelite_callbacks.distill.losses.logits import (
    bce,
    check_temperature,
    class_axis,
    dist,
    dkd,
    dml,
    jsdiv,
    kl,
    l1,
    loss_for_task,
    mse,
    smooth_l1,
)

__all__ = [
    "bce",
    "check_temperature",
    "class_axis",
    "dist",
    "dkd",
    "dml",
    "jsdiv",
    "kl",
    "l1",
    "loss_for_task",
    "mse",
    "smooth_l1",
]
