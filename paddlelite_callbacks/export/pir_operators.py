"""Map Paddle 3 (PIR) operators to Paddle 2: names, slots, attributes.

The table is `OPERATORS`. Attributes of Paddle 2 operators are often operands in Paddle 3, computed by a constant: see
`Constant`. Operators that need more than a mapping of names are in ``legacy_program``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["OPERATORS", "Constant", "InPlace", "Int32", "Operator"]


@dataclass(frozen=True)
class Constant:
    """An operand that becomes an attribute if it is a constant.

    Args:
        attribute: Name of the attribute in Paddle 2.
        slot: Input slot for a tensor operand; ``None`` where Paddle 2 takes only constants.
    """

    attribute: str
    slot: str | None = None


@dataclass(frozen=True)
class Int32:
    """An operand that Paddle 2 reads as int32.

    Args:
        slot: Input slot of the operator.
    """

    slot: str


@dataclass(frozen=True)
class InPlace:
    """A result that Paddle 2 writes into the variable of an input.

    Args:
        slot: Output slot.
        input: Slot of the input that is overwritten.
    """

    slot: str
    input: str


@dataclass(frozen=True)
class Operator:
    """Paddle 2 equivalent of a Paddle 3 operator.

    Args:
        name: Name of the Paddle 2 operator.
        inputs: Input slot of each operand in order; ``None`` for an operand that Paddle 2 does not have.
        outputs: Output slot of each result in order; ``None`` for a result that only training needs.
        renamed: Attributes with another name in Paddle 2.
        fixed: Attributes that the operator of Paddle 3 implies.
        left_out: Attributes that Paddle 2 does not have, with the only value that may be dropped; ``None`` for any.
    """

    name: str
    inputs: Sequence[str | Constant | Int32 | None] = ("X",)
    outputs: Sequence[str | InPlace | None] = ("Out",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, Any] = field(default_factory=dict)


def _unary() -> dict[str, Operator]:
    same = """abs acos acosh asin asinh atan atanh bitwise_not ceil cos cosh digamma erf erfinv exp expm1 floor log
    log10 log1p log2 logical_not logsigmoid reciprocal relu rsqrt sigmoid sign silu sin sinh softsign sqrt square tan
    tanh tanh_shrink assign celu elu selu stanh thresholded_relu gelu softmax log_softmax softplus maxout trunc
    pixel_shuffle pixel_unshuffle channel_shuffle temporal_shift p_norm logsumexp cumprod logit"""
    return {name: Operator(name) for name in same.split()}


def _binary() -> dict[str, Operator]:
    elementwise = {
        "add": "add",
        "subtract": "sub",
        "multiply": "mul",
        "divide": "div",
        "maximum": "max",
        "minimum": "min",
        "remainder": "mod",
        "floor_divide": "floordiv",
        "elementwise_pow": "pow",
        "fmax": "fmax",
        "fmin": "fmin",
        "heaviside": "heaviside",
    }
    same = """equal not_equal less_than less_equal greater_than greater_equal logical_and logical_or logical_xor
    bitwise_and bitwise_or bitwise_xor bmm dot kron"""
    return {
        **{new: Operator(f"elementwise_{old}", ("X", "Y")) for new, old in elementwise.items()},
        **{name: Operator(name, ("X", "Y")) for name in same.split()},
    }


def _reductions() -> dict[str, Operator]:
    keep = {"keepdim": "keep_dim"}
    by_operand = {
        name: Operator(f"reduce_{name}", ("X", Constant("dim")), renamed=keep)
        for name in ("mean", "max", "min", "prod")
    }
    by_attribute = {
        name: Operator(f"reduce_{name}", renamed={"axis": "dim", **keep}) for name in ("any", "all", "amax", "amin")
    }
    return {
        **by_operand,
        **by_attribute,
        "sum": Operator("reduce_sum", ("X", Constant("dim")), renamed={**keep, "dtype": "out_dtype"}),
        "frobenius_norm": Operator("frobenius_norm", ("X", Constant("dim"))),
    }


_CONVOLUTION = ("Input", "Filter")
_TRANSPOSED = ("Input", "Filter", Constant("output_size"))
_BATCH_NORM = Operator(
    "batch_norm",
    ("X", "Mean", "Variance", "Scale", "Bias"),
    ("Y", InPlace("MeanOut", "Mean"), InPlace("VarianceOut", "Variance"), "SavedMean", "SavedVariance", None),
    renamed={"data_format": "data_layout"},
)
_POOL = {"kernel_size": "ksize"}

OPERATORS: dict[str, Operator] = {
    **_unary(),
    **_binary(),
    **_reductions(),
    # convolutions, pooling, norms
    "conv2d": Operator("conv2d", _CONVOLUTION, ("Output",)),
    "depthwise_conv2d": Operator("depthwise_conv2d", _CONVOLUTION, ("Output",)),
    "conv3d": Operator("conv3d", _CONVOLUTION, ("Output",)),
    "conv2d_transpose": Operator("conv2d_transpose", _TRANSPOSED, ("Output",)),
    "depthwise_conv2d_transpose": Operator("depthwise_conv2d_transpose", _TRANSPOSED, ("Output",)),
    "conv3d_transpose": Operator("conv3d_transpose", _CONVOLUTION, ("Output",)),
    "deformable_conv": Operator("deformable_conv", ("Input", "Offset", "Filter", "Mask"), ("Output",)),
    "pool2d": Operator("pool2d", ("X", Constant("ksize"))),
    "pool3d": Operator("pool3d", renamed=_POOL),
    "max_pool2d_with_index": Operator("max_pool2d_with_index", outputs=("Out", "Mask"), renamed=_POOL),
    "max_pool3d_with_index": Operator("max_pool3d_with_index", outputs=("Out", "Mask"), renamed=_POOL),
    "batch_norm_": _BATCH_NORM,
    "layer_norm": Operator("layer_norm", ("X", "Scale", "Bias"), ("Y", "Mean", "Variance")),
    "instance_norm": Operator("instance_norm", ("X", "Scale", "Bias"), ("Y", "SavedMean", "SavedVariance")),
    "group_norm": Operator(
        "group_norm", ("X", "Scale", "Bias"), ("Y", "Mean", "Variance"), renamed={"data_format": "data_layout"}
    ),
    # activations whose attributes have other names
    "hardswish": Operator("hard_swish", fixed={"threshold": 6.0, "scale": 6.0, "offset": 3.0}),
    "hardsigmoid": Operator("hard_sigmoid"),
    "hardshrink": Operator("hard_shrink"),
    "hardtanh": Operator("brelu"),
    "softshrink": Operator("softshrink", renamed={"threshold": "lambda"}),
    "leaky_relu": Operator("leaky_relu", renamed={"negative_slope": "alpha"}),
    "mish": Operator("mish", renamed={"lambda": "threshold"}),
    "relu6": Operator("relu6", fixed={"threshold": 6.0}),  # read by Paddle Lite
    "swish": Operator("swish", fixed={"beta": 1.0}),
    "prelu": Operator("prelu", ("X", "Alpha")),
    "rrelu": Operator("rrelu", outputs=("Out", "Noise")),
    "round": Operator("round", left_out={"decimals": 0}),
    "isnan": Operator("isnan_v2"),
    "isinf": Operator("isinf_v2"),
    "isfinite": Operator("isfinite_v2"),
    # arithmetic
    "scale": Operator("scale", ("X", Constant("scale", "ScaleTensor"))),
    "clip": Operator("clip", ("X", Constant("min", "Min"), Constant("max", "Max"))),
    "pow": Operator("pow", renamed={"y": "factor"}),
    "atan2": Operator("atan2", ("X1", "X2")),
    "lerp": Operator("lerp", ("X", "Y", "Weight")),
    "where": Operator("where", ("Condition", "X", "Y")),
    "matmul": Operator("matmul_v2", ("X", "Y"), renamed={"transpose_x": "trans_x", "transpose_y": "trans_y"}),
    "mv": Operator("mv", ("X", "Vec")),
    "add_n": Operator("sum"),
    "einsum": Operator("einsum", ("Operands",), ("Out", "InnerCache", "XShape")),
    "cumsum": Operator("cumsum", ("X", Constant("axis"))),
    "argmax": Operator("arg_max", ("X", Constant("axis"))),
    "argmin": Operator("arg_min", ("X", Constant("axis"))),
    "argsort": Operator("argsort", outputs=("Out", "Indices"), left_out={"stable": None}),
    "topk": Operator("top_k_v2", ("X", Constant("k", "K")), ("Out", "Indices")),
    "one_hot": Operator("one_hot_v2", ("X", Constant("depth", "depth_tensor"))),
    "tril": Operator("tril_triu", fixed={"lower": True}),
    "triu": Operator("tril_triu", fixed={"lower": False}),
    "full_like": Operator("fill_any_like", ("X", Constant("value"))),
    "linspace": Operator("linspace", ("Start", "Stop", Int32("Num"))),
    "embedding": Operator("lookup_table_v2", ("Ids", "W"), left_out={"sparse": None}),
    # shapes
    "numel": Operator("size", ("Input",)),
    "reshape": Operator("reshape2", ("X", Constant("shape", "Shape"))),
    "flatten": Operator("flatten_contiguous_range"),
    "transpose": Operator("transpose2", renamed={"perm": "axis"}),
    "squeeze": Operator("squeeze2", ("X", Constant("axes"))),
    "unsqueeze": Operator("unsqueeze2", ("X", Constant("axes", "AxesTensor"))),
    "concat": Operator("concat", ("X", Constant("axis", "AxisTensor"))),
    "stack": Operator("stack", outputs=("Y",)),
    "split": Operator("split", ("X", Constant("sections"), Constant("axis", "AxisTensor"))),
    "split_with_num": Operator("split", ("X", Constant("axis", "AxisTensor"))),
    "unbind": Operator("unbind"),
    "unstack": Operator("unstack", outputs=("Y",)),
    "slice": Operator("slice", ("Input", Constant("starts", "StartsTensor"), Constant("ends", "EndsTensor"))),
    "strided_slice": Operator(
        "strided_slice",
        (
            "Input",
            Constant("starts", "StartsTensor"),
            Constant("ends", "EndsTensor"),
            Constant("strides", "StridesTensor"),
        ),
    ),
    "flip": Operator("flip"),
    "roll": Operator("roll", ("X", Constant("shifts", "ShiftsTensor"))),
    "tile": Operator("tile", ("X", Constant("repeat_times", "RepeatTimes"))),
    "expand": Operator("expand_v2", ("X", Constant("shape", "Shape"))),
    "expand_as": Operator("expand_as_v2", ("X", "Y")),
    "pad": Operator("pad", ("X", Constant("pad_value"))),
    "pad3d": Operator("pad3d", ("X", Constant("paddings", "Paddings")), renamed={"pad_value": "value"}),
    "gather": Operator("gather", ("X", "Index", Constant("axis", "Axis"))),
    "gather_nd": Operator("gather_nd", ("X", "Index")),
    "index_select": Operator("index_select", ("X", "Index"), renamed={"axis": "dim"}),
    "index_sample": Operator("index_sample", ("X", "Index")),
    "take_along_axis": Operator("take_along_axis", ("Input", "Index"), ("Result",), renamed={"axis": "Axis"}),
    "scatter": Operator("scatter", ("X", "Ids", "Updates")),
    "scatter_nd_add": Operator("scatter_nd_add", ("X", "Index", "Updates")),
    "masked_select": Operator("masked_select", ("X", "Mask"), ("Y",)),
    "nonzero": Operator("where_index", ("Condition",)),
    "repeat_interleave": Operator(
        "repeat_interleave", renamed={"repeats": "Repeats", "axis": "dim"}, left_out={"output_size": -1}
    ),
    "meshgrid": Operator("meshgrid"),
    "unfold": Operator("unfold", outputs=("Y",)),
    "grid_sample": Operator("grid_sampler", ("X", "Grid"), ("Output",)),
    "affine_grid": Operator("affine_grid", ("Theta", Constant("output_shape", "OutputShape")), ("Output",)),
    "cast": Operator("cast", renamed={"dtype": "out_dtype"}),
    "dropout": Operator(
        "dropout",
        ("X", None, Constant("dropout_prob")),
        ("Out", "Mask"),
        renamed={"mode": "dropout_implementation"},
        left_out={"seed": None, "fix_seed": None},
    ),
    "rnn": Operator(
        "rnn",
        ("Input", "PreState", "WeightList", "SequenceLength", None),
        ("Out", "DropoutState", "State", "Reserve"),
    ),
}
