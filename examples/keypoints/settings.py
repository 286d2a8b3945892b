"""Settings and helper functions that the keypoint scripts share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paddle
from coco import People, read_people
from dataset import Augment, KeypointDataset
from evaluation import KeypointAP, KeypointMetric
from generator import Scene, generate
from layouts import COCO_BODY, Layout
from lsp import read_lsp
from mpii import PCKh, read_mpii
from pck import PCKAndAP

from paddlelite_callbacks import load_pact_, models
from paddlelite_callbacks.quant.checkpoint import quantized_in
from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = ["SETTINGS", "Settings", "add_data_flags", "datasets", "hapi_model", "load_weights", "network", "optimizer"]

NETWORKS = {
    "hrnet_w18": lambda: models.hrnet_w18(multi_scale=False),
    "hrnet_w18_small_v2": lambda: models.hrnet_w18_small_v2(multi_scale=False),
    "hrnet_w32": lambda: models.hrnet_w32(multi_scale=False),
    "hrnet_w48": lambda: models.hrnet_w48(multi_scale=False),
    "lite_hrnet_18": models.lite_hrnet_18,
    "lite_hrnet_30": models.lite_hrnet_30,
    "naive_lite_hrnet_18": models.naive_lite_hrnet_18,
    "wider_naive_lite_hrnet_18": models.wider_naive_lite_hrnet_18,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training settings.

    Args:
        size: Size ``(H, W)`` of the input in pixels.
        sigma: Standard deviation of the targets in pixels of the heatmap.
        batch_size: Images per batch and process.
        epochs: Number of epochs.
        learning_rate: Learning rate of Adam after warm-up.
        warmup_steps: Number of steps of linear warm-up.
        milestones: Epochs after which the rate is divided by ten; may be fractional.
        augment: Augmentation of the training images.
    """

    size: tuple[int, int] = (256, 192)
    sigma: float = 2.0
    batch_size: int = 64
    epochs: int = 210
    learning_rate: float = 2e-3
    warmup_steps: int = 500
    milestones: tuple[float, ...] = (170, 200)
    augment: Augment = field(default_factory=Augment)


_TOY = {
    "size": (64, 64),
    "sigma": 1.5,
    "batch_size": 16,
    "learning_rate": 4e-3,
    "warmup_steps": 20,
    "augment": Augment(scale=0.2, degrees=15.0, half_body=0.0),
}
SETTINGS = {
    # the guide's hrnet_w32_256x192.yml and lite_hrnet_30_256x192_coco.yml
    "coco-hrnet": Settings(learning_rate=5e-4, warmup_steps=1000, augment=Augment(scale=0.5, degrees=40.0)),
    "coco-lite": Settings(),
    # LSP and LSPET, of which the published images and their cut-outs are about 150 pixels, in hours on one CPU core
    "people": Settings(
        size=(96, 96),
        sigma=1.5,
        batch_size=32,
        epochs=8,
        learning_rate=4e-3,
        warmup_steps=100,
        milestones=(6, 7.5),
        augment=Augment(scale=0.2, degrees=20.0, half_body=0.0),
    ),
    # generated figures on a few CPU cores
    "toy": Settings(epochs=6, milestones=(4, 5), **_TOY),
    "toy-quick": Settings(epochs=2, milestones=(1.4, 1.8), **_TOY),
}
# one figure per generated image, so that an hour of training on a CPU core is enough
TOY_SCENE = Scene(people=1, clutter=6, occluders=1, noise=6.0)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select the data."""
    parser.add_argument("--settings", choices=SETTINGS, default="toy", help="training settings (default: toy)")
    parser.add_argument("--coco", type=Path, help="folder of COCO 2017 (annotations/, train2017/, val2017/)")
    parser.add_argument("--mpii", type=Path, help="folder of MPII (annot/train.json, annot/valid.json, images/)")
    parser.add_argument(
        "--lsp", type=Path, help="folder of LSP or LSPET (joints.mat, images/), also in COCO's form (annotations/)"
    )
    parser.add_argument("--boxes", type=Path, help="boxes of a detector for evaluation (default: ground truth)")
    parser.add_argument("--toy", type=Path, default=Path("toy-keypoints"), help="folder of the generated images")
    parser.add_argument("--toy-images", type=int, nargs=2, default=(1600, 200), metavar=("TRAIN", "VAL"))
    parser.add_argument("--udp", action="store_true", help="unbiased data preparation (arXiv:1911.07524)")
    parser.add_argument(
        "--dark", action=argparse.BooleanOptionalAction, help="DARK targets and decoding (arXiv:1910.06278)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")


def datasets(flags: argparse.Namespace) -> tuple[KeypointDataset, KeypointDataset]:
    """Return training and evaluation data, and print their sizes."""
    settings, sources = SETTINGS[flags.settings], _sources(flags)
    for name, source in zip(("training", "evaluation"), sources, strict=True):
        print(f"{name}: {len(source.people)} persons, left out: {dict(source.dropped) or 'none'}")
    shared: dict[str, Any] = {"sigma": settings.sigma, "udp": flags.udp, "unbiased": flags.dark}
    shared["keep_images"] = flags.coco is None and flags.mpii is None
    train = KeypointDataset(sources[0], settings.size, augment=settings.augment, **shared)
    return train, KeypointDataset(sources[1], settings.size, **shared)


def _sources(flags: argparse.Namespace) -> tuple[People, People]:
    if flags.coco is not None:
        notes = flags.coco / "annotations"
        train = read_people(notes / "person_keypoints_train2017.json", flags.coco / "train2017")
        return train, read_people(notes / "person_keypoints_val2017.json", flags.coco / "val2017", boxes=flags.boxes)
    if flags.mpii is not None:
        return _mpii(flags)
    if flags.lsp is not None:
        if flags.boxes is not None:
            raise ValueError("--boxes are COCO's; the boxes of LSP's persons surround their joints.")
        return read_lsp(flags.lsp)
    counts = dict(zip(("train", "val"), flags.toy_images, strict=True))
    parts = [(flags.toy / f"{part}-{n}", n, seed) for seed, (part, n) in enumerate(counts.items(), 1)]
    if paddle.distributed.get_rank() > 0:
        paddle.distributed.barrier()  # rank 0 generates the images, the others wait
    train, held_out = (generate(folder, count, seed=seed, scene=TOY_SCENE) for folder, count, seed in parts)
    if paddle.distributed.get_world_size() > 1 and paddle.distributed.get_rank() == 0:
        paddle.distributed.barrier()
    return read_people(*train), read_people(*held_out, boxes=flags.boxes)


def _mpii(flags: argparse.Namespace) -> tuple[People, People]:
    if flags.boxes is not None:
        raise ValueError("--boxes are COCO's; MPII's persons come with their centre and scale.")
    notes, images = flags.mpii / "annot", flags.mpii / "images"
    heads = notes / "gt_valid.mat"
    held_out = read_mpii(notes / "valid.json", images, heads=heads if heads.is_file() else None)
    return read_mpii(notes / "train.json", images), held_out


def network(name: str, layout: Layout = COCO_BODY) -> paddle.nn.Layer:
    """Build the keypoint network ``name`` with one heatmap per joint."""
    return models.keypoint_net(NETWORKS[name](), len(layout.joints))


def metric_of(dataset: KeypointDataset, *, dark: bool = False) -> KeypointMetric:
    """Return COCO's AP, PCKh for MPII's joints, or PCK and AP for LSP's."""
    metric = {"coco": KeypointAP, "mpii": PCKh, "lsp": PCKAndAP}[dataset.source.layout.name]
    return metric(dataset, dark=dark)


def load_weights(target: paddle.nn.Layer, path: Path, *, weight_bits: int | None = None) -> None:
    """Load a ``.pdparams`` of these scripts or of the guide.

    A file trained with PACT quantises ``target``.

    Args:
        target: Network to load the weights into.
        path: Path of the file.
        weight_bits: Bits of the weights trained with PACT; ``None`` for those in the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is of another network.
    """
    from paddlelite_callbacks.models.guide_weights import load_guide_weights_

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    state = read_saved(path)
    if any(key.startswith("final_conv") for key in state):
        load_guide_weights_(target, state)
        return
    if quantized_in(state):
        load_pact_(target, state, weight_bits=weight_bits)
        return
    wanted = target.state_dict()
    wrong = sorted(wanted.keys() ^ state.keys()) or [k for k, v in wanted.items() if v.shape != list(state[k].shape)]
    if wrong:
        raise ValueError(f"{path} belongs to another network: {len(wrong)} keys or shapes differ, as {wrong[:3]}.")
    target.set_state_dict(state)


def optimizer(settings: Settings, layer: paddle.nn.Layer, steps: int) -> paddle.optimizer.Optimizer:
    """Return Adam with the guide's schedule.

    Linear warm-up, then the rate is divided by ten at each milestone.

    Args:
        settings: Training settings.
        layer: Network to train.
        steps: Steps per epoch.
    """
    bounds = [round(epoch * steps) for epoch in settings.milestones]
    rates = [settings.learning_rate * 0.1**k for k in range(len(bounds) + 1)]
    piecewise: Any = paddle.optimizer.lr.PiecewiseDecay(bounds, rates) if bounds else settings.learning_rate
    warm = min(settings.warmup_steps, max(1, steps * settings.epochs // 4))
    schedule = paddle.optimizer.lr.LinearWarmup(piecewise, warm, settings.learning_rate * 1e-3, settings.learning_rate)
    return paddle.optimizer.Adam(schedule, parameters=layer.parameters())


def hapi_model(
    layer: paddle.nn.Layer,
    settings: Settings,
    metric: KeypointMetric | None = None,
    optim: paddle.optimizer.Optimizer | None = None,
    joints: int = 17,
) -> paddle.Model:
    """Wrap ``layer`` for ``fit`` and ``evaluate`` over a `KeypointDataset`."""
    spec, (height, width) = paddle.static.InputSpec, settings.size
    labels = [
        spec([None, joints, height // 4, width // 4], "float32", "heatmaps"),
        spec([None, joints], "float32", "weight"),
        spec([None], "int64", "index"),
    ]
    model = paddle.Model(layer, [spec([None, 3, height, width], "float32", "x")], labels)
    model.prepare(optim, models.HeatmapLoss(), metric)
    return model


def shortened(settings: Settings, epochs: int | None) -> Settings:
    """Return ``settings`` with other epochs, and milestones scaled in proportion."""
    if epochs is None:
        return settings
    moved = tuple(milestone * epochs / settings.epochs for milestone in settings.milestones)
    return replace(settings, epochs=epochs, milestones=moved)


def steps_per_epoch(data: KeypointDataset, settings: Settings) -> int:
    """Return the number of batches per epoch and process."""
    return -(-len(data) // (settings.batch_size * paddle.distributed.get_world_size()))


def flip_tested(layer: paddle.nn.Layer, *, udp: bool, layout: Layout = COCO_BODY) -> paddle.nn.Layer:
    """Return ``layer`` with its outputs averaged over the image and its mirror image."""
    return models.FlipTest(layer, list(layout.flip_pairs), shift=not udp)
