"""OKS, OKS-NMS, and COCO's AP and AR as a metric of `paddle.Model`."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from dataset import KeypointDataset
from layouts import COCO_BODY

from paddlelite_callbacks.models import decode_heatmaps
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["KeypointAP", "KeypointMetric", "coco_ap", "oks", "oks_nms", "to_results", "write_results"]

_NAMES = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]


def oks(joints: np.ndarray, others: np.ndarray, areas: np.ndarray, *, sigmas: Any = COCO_BODY.sigmas) -> np.ndarray:
    """Return the object keypoint similarity of one person to others.

    COCO's formula, with all joints counted as visible.

    Args:
        joints: Joints ``[J, 2]`` in pixels.
        others: Joints ``[K, J, 2]`` of the others in pixels.
        areas: Mean areas ``[K]`` of both persons in square pixels.
        sigmas: COCO's constants ``[J]``.

    Returns:
        Similarities ``[K]`` in [0, 1].
    """
    distance = ((others - joints) ** 2).sum(-1)
    return np.exp(-distance / (2 * areas[:, None] * (2 * sigmas) ** 2 + np.spacing(1))).mean(-1)


def oks_nms(
    results: list[dict[str, Any]], *, threshold: float = 0.9, sigmas: Any = COCO_BODY.sigmas
) -> list[dict[str, Any]]:
    """Apply non-maximum suppression by OKS to the persons of one image.

    Args:
        results: Results with ``keypoints``, ``score`` and ``area``.
        threshold: Largest `oks` to a kept person.
        sigmas: COCO's constants ``[J]``.
    """
    kept: list[dict[str, Any]] = []
    for result in sorted(results, key=lambda item: -item["score"]):
        joints = _places(result)
        if kept:
            areas = np.array([(other["area"] + result["area"]) / 2 for other in kept])
            others = np.stack([_places(other) for other in kept])
            if oks(joints, others, areas, sigmas=sigmas).max() > threshold:
                continue
        kept.append(result)
    return kept


def _places(result: dict[str, Any]) -> np.ndarray:
    return np.asarray(result["keypoints"]).reshape(-1, 3)[:, :2]


def to_results(
    heatmaps: np.ndarray, indices: np.ndarray, dataset: KeypointDataset, *, dark: bool = False, least: float = 0.2
) -> list[dict[str, Any]]:
    """Decode heatmaps into COCO results.

    The score is that of the box times the mean score of the joints above ``least``.

    Args:
        heatmaps: Heatmaps ``[N, J, h, w]``.
        indices: Indices ``[N]`` of the samples in ``dataset``.
        dataset: Data of the samples, without augmentation.
        dark: Whether to decode with DARK.
        least: Lowest score of a joint that counts.
    """
    places, heights = decode_heatmaps(heatmaps, dark=dark)
    results = []
    for i, index in enumerate(indices.reshape(-1).tolist()):
        person, joints = dataset.people[index], dataset.to_image(index, places[i])
        sure = heights[i][heights[i] > least]
        size = dataset.region(index)[1]
        results.append(
            {
                "image_id": int(person.image_id),
                "category_id": 1,
                "keypoints": np.concatenate([joints, heights[i][:, None]], axis=1).reshape(-1).tolist(),
                "score": float(person.score * (sure.mean() if len(sure) else 0.0)),
                "area": float(size.prod()),
                "index": int(index),
            }
        )
    return results


def suppressed(
    results: list[dict[str, Any]], *, threshold: float = 0.9, sigmas: Any = COCO_BODY.sigmas
) -> list[dict[str, Any]]:
    """Apply `oks_nms` per image; samples duplicated across processes count once."""
    by_image: dict[int, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_image.setdefault(result["image_id"], {})[result["index"]] = result
    groups = [list(items.values()) for items in by_image.values()]
    return [kept for items in groups for kept in oks_nms(items, threshold=threshold, sigmas=sigmas)]


def coco_ap(
    results: list[dict[str, Any]], truth: Path | dict[str, Any], *, sigmas: Any = COCO_BODY.sigmas
) -> dict[str, float]:
    """Return COCO's AP and AR in [0, 1] by `pycocotools`; zeros without results.

    Args:
        results: Results from `to_results`.
        truth: Annotation file of COCO, or its content.
        sigmas: Constants ``[J]`` of the joints.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(_NAMES, 0.0)
    plain = [{k: item[k] for k in ("image_id", "category_id", "keypoints", "score")} for item in results]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth) if isinstance(truth, Path) else None)
        if not isinstance(truth, Path):
            known.dataset = truth
            known.createIndex()
        evaluation = COCOeval(known, known.loadRes(plain), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(_NAMES, map(float, evaluation.stats), strict=True))


def write_results(results: list[dict[str, Any]], path: Path) -> None:
    """Write COCO's results JSON atomically."""
    plain = [{k: item[k] for k in ("image_id", "category_id", "keypoints", "score")} for item in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as partial:
        partial.write_text(json.dumps(plain), encoding="utf-8")


class KeypointMetric(paddle.metric.Metric):
    """Base of metrics of decoded heatmaps; see `KeypointAP`.

    Training batches are not evaluated, as they are augmented: their values are 0.

    Args:
        dataset: Data of the indices in the labels, without augmentation.
        dark: Whether to decode with DARK.

    Attributes:
        results: Results of the last evaluation, for `write_results`.
    """

    def __init__(self, dataset: KeypointDataset, *, dark: bool = False) -> None:
        super().__init__()
        self.dataset, self.dark = dataset, dark
        self._raw: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self._training = False

    def figures(self, raw: list[dict[str, Any]]) -> list[float]:
        """Set `results` and return the values in the order of `name`.

        Args:
            raw: Results of all batches, from `to_results`.
        """
        raise NotImplementedError

    def compute(self, output: paddle.Tensor, *labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return heatmaps and indices (the last label); note whether it is training."""
        self._training = not output.stop_gradient
        return output, labels[-1]

    def update(self, heatmaps: Any, indices: Any) -> list[float]:
        """Decode one batch."""
        if not self._training:
            self._raw += to_results(np.asarray(heatmaps), np.asarray(indices), self.dataset, dark=self.dark)
        return [0.0] * len(self.name())

    def accumulate(self) -> list[float]:
        """Return the values in the order of `name`."""
        return self.figures(self._raw) if self._raw else [0.0] * len(self.name())

    def reset(self) -> None:
        """Discard the results of all batches."""
        self._raw = []


class KeypointAP(KeypointMetric):
    """COCO's AP and AR over a dataset, for ``model.prepare(metrics=...)``.

    Args:
        dataset: Data of the indices in the labels, without augmentation.
        dark: Whether to decode with DARK.
        nms: Threshold of `oks_nms`.

    Attributes:
        truth: Annotation file of COCO, or its content.
    """

    truth: Path | dict[str, Any]

    def __init__(self, dataset: KeypointDataset, *, dark: bool = False, nms: float = 0.9) -> None:
        super().__init__(dataset, dark=dark)
        self.nms, self.truth = nms, dataset.source.annotations

    def figures(self, raw: list[dict[str, Any]]) -> list[float]:
        """Return AP and AR of ``raw`` after `suppressed`."""
        sigmas = self.dataset.source.layout.sigmas
        self.results = suppressed(raw, threshold=self.nms, sigmas=sigmas)
        return list(coco_ap(self.results, self.truth, sigmas=sigmas).values())

    def name(self) -> list[str]:
        """Return the names of the values."""
        return list(_NAMES)
