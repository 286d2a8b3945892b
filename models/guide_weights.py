"""Load the guide's ``.pdparams`` into these networks.

They are PaddleDetection's HRNet and LiteHRNet keypoint models.

Keys in the guide's files and here (``s`` stage, ``m`` module, ``i`` and ``j`` branches, all from 0):

=============================================================  =====================================================
HRNet                                                          here
``backbone.conv_layer1_1``, ``_2``                             ``backbone.stem.0``, ``.1``
``backbone.la1.block_layer2_<b+1>``                            ``backbone.layer1.<b>``
``backbone.tr<s+1>.transition_tr<s+1>_layer_<i+1>``            ``backbone.transitions.<s>.<i>``
``backbone.st<s+2>.stage_st<s+2>_<m+1>.branches_func.``        ``backbone.stages.<s>.<m>.branches.<i>.<b>``
``bb_..._branch_layer_<i+1>_<b+1>``
``... .fuse_func.residual_..._layer_<i+1>_<j+1>[_<k+1>]``      ``backbone.stages.<s>.<m>.fuse.paths.<j>_to_<i>[.<k>]``
LiteHRNet
``backbone.transition<s>.<i>[.0].<0-3>``                       ``backbone.transitions.<s>.<i>.<part>``
``backbone.stage<s>.<m>.layers.<0, 1>``                        ``backbone.stages.<s>.<m>.blocks.<first, second>``
``... .spatial_weighting.<i>.conv<1, 2>.conv.weight``          ``... .fc<1, 2>.weight``, transposed
``... .fuse_layers.<i>.<j>[.<k>].<0-3>``                       ``... .fuse.paths.<j>_to_<i>[.<k>].<part>``
``backbone.head_layer.projects.<i>.<part>_conv``               ``backbone.head.projects.<i>.<part>``
naive: ``... .layers.<i>.<0, 1>.branch2.<0-2>``                ``... .blocks.<first, second>.branches.<i>.<0-2>``
both: ``final_conv``                                           ``head``
=============================================================  =====================================================

``<part>``: 0 and 1 are ``depthwise.conv`` and ``depthwise.norm``, 2 and 3 ``pointwise.conv`` and ``pointwise.norm``
(``conv`` and ``norm`` where a path has no depthwise part). The names below ``conv`` and ``norm`` are the same. The
second block of a pair and the layers after the stem store their channels in another order, see
`lite_blocks.paired_order`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from paddle import nn

from .lite_blocks import paired_order

__all__ = ["convert_guide_weights", "guide_key", "load_guide_weights_"]

_RULES: tuple[tuple[str, str], ...] = (
    (r"^final_conv\.", "head."),
    (r"^backbone\.conv_layer1_1\.", "backbone.stem.0."),
    (r"^backbone\.conv_layer1_2\.", "backbone.stem.1."),
    (r"^backbone\.la1\.block_layer2_(\d+)\.", r"backbone.layer1.<\1-1>."),
    (r"^backbone\.tr(\d)\.transition_tr\d_layer_(\d)\.", r"backbone.transitions.<\1-1>.<\2-1>."),
    (r"^backbone\.st(\d)\.stage_st\d_(\d)\.", r"backbone.stages.<\1-2>.<\2-1>."),
    (r"\.branches_func\.bb_st\d_\d_branch_layer_(\d)_(\d)\.", r".branches.<\1-1>.<\2-1>."),
    (r"\.fuse_func\.residual_st\d_\d_layer_(\d)_(\d)\.", r".fuse.paths.<\2-1>_to_<\1-1>."),
    (r"\.fuse_func\.residual_st\d_\d_layer_(\d)_(\d)_(\d)\.", r".fuse.paths.<\2-1>_to_<\1-1>.<\3-1>."),
    (r"^backbone\.transition(\d)\.(\d)(?:\.0)?\.([0-3])\.(?=[a-z_]+$)", r"backbone.transitions.\1.\2.{\3}."),
    (r"^backbone\.stage(\d)\.(\d)\.", r"backbone.stages.\1.\2."),
    (r"\.layers\.(\d)\.([01])\.branch2\.", r".blocks.[\2].branches.\1."),
    (r"\.layers\.([01])\.", r".blocks.[\1]."),
    (r"\.spatial_weighting\.(\d)\.conv([12])\.conv\.", r".spatial_weighting.\1.fc\2."),
    (r"\.fuse_layers\.(\d)\.(\d)\.(\d)\.([0-3])\.", r".fuse.paths.\2_to_\1.\3.{\4}."),
    (r"\.fuse_layers\.(\d)\.(\d)\.0\.(?=[a-z_]+$)", r".fuse.paths.\2_to_\1.conv."),
    (r"\.fuse_layers\.(\d)\.(\d)\.1\.(?=[a-z_]+$)", r".fuse.paths.\2_to_\1.norm."),
    (r"^backbone\.head_layer\.projects\.(\d)\.(depth|point)wise_conv\.", r"backbone.head.projects.\1.\2wise."),
)
_PARTS = ("depthwise.conv", "depthwise.norm", "pointwise.conv", "pointwise.norm")


def guide_key(name: str) -> str:
    """Return the key in this package's network of the guide's key ``name``."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"<(\d+)-(\d)>", lambda m: str(int(m[1]) - int(m[2])), name)
    name = re.sub(r"\{([0-3])\}", lambda m: _PARTS[int(m[1])], name)
    return re.sub(r"\[([01])\]", lambda m: ("first", "second")[int(m[1])], name)


def convert_guide_weights(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the guide's ``state_dict`` with the keys and layouts of this package.

    Args:
        state: Result of ``paddle.load("lite_hrnet_30_256x192_coco.pdparams")``, tensors or arrays; not changed.
    """
    arrays = {name: np.asarray(value) for name, value in state.items()}
    widths = _half_widths(arrays)
    converted = {}
    for name, array in arrays.items():
        key = guide_key(name)
        for axis, order in _orders(key, array, widths):
            array = np.take(array, order, axis=axis)
        if re.search(r"\.fc[12]\.weight$", key):
            array = array.reshape(array.shape[:2]).T
        converted[key] = array
    return converted


def load_guide_weights_(network: nn.Layer, state: Mapping[str, Any]) -> None:
    """Load the guide's weights into a `KeypointNet`, in place.

    Args:
        network: For instance ``keypoint_net(hrnet_w32(multi_scale=False))`` or ``keypoint_net(lite_hrnet_30())``.
        state: ``state_dict`` of the guide's network.

    Raises:
        ValueError: Keys are missing or unexpected, or a shape differs; nothing is loaded then.
    """
    converted, wanted = convert_guide_weights(state), network.state_dict()
    missing, left = sorted(wanted.keys() - converted.keys()), sorted(converted.keys() - wanted.keys())
    if missing or left:
        raise ValueError(
            f"These are not the guide's weights of this network: {len(missing)} keys missing ({missing[:3]} ...), "
            f"{len(left)} left over ({left[:3]} ...). Build the network that the file is of."
        )
    wrong = [key for key, value in wanted.items() if list(value.shape) != list(converted[key].shape)]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{len(wrong)} shapes differ, the first is {key}: {list(converted[key].shape)}, the network has "
            f"{list(wanted[key].shape)}. Another number of joints or another width?"
        )
    network.set_state_dict(converted)


def _half_widths(arrays: Mapping[str, np.ndarray]) -> list[int]:
    """Return half the channels of each Lite-HRNet branch, finest first; else ``[]``."""
    widths = {}
    for name, array in arrays.items():
        weighted = re.search(r"\.layers\.0\.depthwise_convs\.(\d)\.conv\.weight$", name)
        plain = re.search(r"\.layers\.(\d)\.0\.branch2\.0\.conv\.weight$", name)
        if found := weighted or plain:
            widths[int(found[1])] = array.shape[0]
    return [widths[i] for i in sorted(widths)]


def _orders(key: str, array: np.ndarray, widths: list[int]) -> list[tuple[int, list[int]]]:
    """Return the axes of the array of ``key`` to reorder, with their orders."""
    if re.match(r"backbone\.transitions\.0\.\d\.", key) and widths:
        order = [*range(0, 32, 2), *range(1, 32, 2)]  # the halves of the stem are not interleaved here
        if ".depthwise." in key:
            return [(0, order)]
        return [(1, order)] if key.endswith("pointwise.conv.weight") else []
    if ".blocks.second." not in key:
        return []
    orders = [paired_order(2 * width)[0] for width in widths]
    if branch := re.search(r"\.(?:depthwise_convs|spatial_weighting|branches)\.(\d)\.", key):
        return _branch_orders(key, orders[int(branch[1])])
    if ".conv1.norm" in key:
        return []
    total = array.shape[1] if ".conv1.conv" in key else array.shape[0]
    joined: list[int] = []
    for width, order in zip(widths, orders, strict=True):
        if len(joined) < total:
            joined += [len(joined) + k for k in order[:width]]
    return [(1 if ".conv1.conv" in key else 0, joined)]


def _branch_orders(key: str, order: list[int]) -> list[tuple[int, list[int]]]:
    if re.search(r"\.fc1\.weight$|\.branches\.\d\.0\.conv\.weight$", key):
        return [(1, order)]
    if re.search(r"\.fc1\.bias$|\.branches\.\d\.[01]\.", key):
        return []
    return [(0, order)]
