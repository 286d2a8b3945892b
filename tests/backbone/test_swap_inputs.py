"""Backbones that are called with a dictionary, several inputs or keywords; what necks read of them."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from swap_nets import SIZE, SPEC, Stages
from toy import equal_weights, weights_of

from paddlelite_callbacks import BackboneSwap, BenchOptions, ExportBenchCallback
from paddlelite_callbacks.backbone.features import find_taps
from paddlelite_callbacks.backbone.image import image_place
from paddlelite_callbacks.backbone.registry import build

IMAGE = [1, 3, SIZE, SIZE]


class DictStages(Stages):
    """As PaddleDetection's and the guide's: the backbone takes the whole batch."""

    def forward(self, inputs):
        return super().forward(inputs["image"])


class Two(Stages):
    def forward(self, image, mask):
        return super().forward(image * mask)


class Keyword(Stages):
    def forward(self, *, pixels, scale=1.0):
        return super().forward(pixels * scale)


class Net(nn.Layer):
    """A head on a backbone that is called by ``call(backbone, x)``."""

    def __init__(self, backbone, call):
        super().__init__()
        self.backbone, self.call = backbone, call
        self.head = nn.Conv2D(16, 2, 1)

    def forward(self, x):
        return self.head(self.call(self.backbone, x)[0])


def with_dict(backbone, x):
    return backbone({"im_shape": paddle.ones([2]), "image": x, "im_id": 3})


def with_mask(backbone, x):
    return backbone(x, paddle.ones([1, 1, SIZE, SIZE]))


def with_keyword(backbone, x):
    return backbone(pixels=x, scale=2.0)


def with_flag(backbone, x):
    return backbone(x, True)


class Flagged(Stages):
    def forward(self, x, all_stages):
        return super().forward(x) if all_stages else None


CALLS = {
    "dict": (DictStages, with_dict),
    "two inputs": (Two, with_mask),
    "keyword": (Keyword, with_keyword),
    "a flag": (Flagged, with_flag),
}


def light():
    """Maps of stride 8 that need no projection, so that the truth is a plain call."""
    return nn.Sequential(
        nn.Conv2D(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2D(4, 16, 3, stride=4, padding=1), nn.ReLU()
    )


@pytest.mark.parametrize("kind", CALLS)
def test_the_light_backbone_gets_the_image_by_itself(kind):
    make, call = CALLS[kind]
    network, own, x = Net(make([8]), call), light(), paddle.rand([2, *IMAGE[1:]])
    rest = {key: value for key, value in weights_of(network).items() if not key.startswith("backbone.")}
    BackboneSwap(own, at="backbone")(network, SPEC)
    network.eval()
    assert np.array_equal(network(x).numpy(), network.head(own(x)).numpy())
    assert equal_weights({key: weights_of(network)[key] for key in rest}, rest)
    assert [key for key in network.state_dict() if key.startswith("backbone.")] == [
        f"backbone.{key}" for key in own.state_dict()
    ]


@pytest.mark.parametrize("kind", CALLS)
def test_trained_exported_and_summed_up(kind, tmp_path):
    make, call = CALLS[kind]
    network = Net(make([8]), call)
    swap = BackboneSwap("mobilenet_v2", at="backbone", options={"scale": 0.25})
    swap(network, SPEC)
    model, before = paddle.Model(network), weights_of(network)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=network.parameters()), nn.CrossEntropyLoss(axis=1))
    labels = paddle.randint(0, 2, [4, SIZE // 8, SIZE // 8])
    export = ExportBenchCallback(
        tmp_path,
        name="n",
        engines=["paddle"],
        verbose=0,
        benchmark=BenchOptions(warmup=0, repeats=2, peak_memory=False, roofline=False),
    )
    data = paddle.io.TensorDataset([paddle.rand([4, *IMAGE[1:]]), labels])
    model.fit(data, batch_size=2, verbose=0, callbacks=[export])
    assert [check.passed for check in export.record.checks] == [True]
    assert not [key for key, value in weights_of(network).items() if np.array_equal(value, before[key])]
    summary = swap.summary(warmup=0, repeats=1)
    assert summary.before.error is None
    assert summary.after.error is None


class Detector(nn.Layer):
    """The whole network takes a dictionary, as PaddleDetection's architectures do."""

    def __init__(self, pack=list):
        super().__init__()
        self.backbone = DictStages([8, 16], pack=pack)
        self.head = nn.Conv2D(16, 2, 1)

    def forward(self, inputs):
        maps = self.backbone(inputs)
        scores = self.head(maps[0]) / inputs["scale_factor"].reshape([-1, 1, 1, 1])
        return {"score": scores} if not self.training else {"loss": scores.mean()}


DICT_SPEC = [{"scale_factor": InputSpec([None, 1]), "image": InputSpec([None, *IMAGE[1:]])}]


@needs("paddleclas")
def test_a_network_that_takes_a_dictionary():
    network = Detector()
    batch = {"image": paddle.rand([2, *IMAGE[1:]]), "scale_factor": paddle.full([2, 1], 2.0)}
    swap = BackboneSwap("PPLCNet_x0_25", at="backbone")
    swap(network, DICT_SPEC)
    assert network.backbone.taps == ["blocks4", "blocks5"]
    network.eval()
    by_hand = build("PPLCNet_x0_25")
    by_hand.set_state_dict({k[9:]: v for k, v in network.state_dict().items() if k.startswith("backbone.")})
    by_hand.eval()
    x = by_hand.conv1(batch["image"])
    for stage in (by_hand.blocks2, by_hand.blocks3, by_hand.blocks4):
        x = stage(x)
    projected = network.backbone.project["0"](x)
    np.testing.assert_allclose(network(batch)["score"].numpy(), (network.head(projected) / 2.0).numpy(), atol=1e-6)
    network.train()
    assert network(batch)["loss"].shape == []
    summary = swap.summary(warmup=0, repeats=1)
    assert summary.before.macs > 0
    assert summary.before.error is None
    assert summary.after.p50_ms is not None


class OwnDict(nn.Layer):
    """A light backbone that takes a dictionary itself: PaddleDetection's own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2D(3, 6, 3, stride=8, padding=1)
        self.b = nn.Conv2D(6, 16, 3, stride=2, padding=1)
        self.idle = nn.Conv2D(16, 1, 1)

    def forward(self, inputs):
        c3 = self.a(inputs["image"])
        c4 = self.b(c3)
        self.idle(c4)
        return [c3, c4]


@pytest.mark.parametrize("old", [DictStages, Stages])
def test_a_light_backbone_that_takes_a_dictionary_itself(old, tmp_path):
    def call(backbone, x):
        return backbone({"image": x}) if old is DictStages else backbone(x)

    network, own, x = Net(old([16]), call), OwnDict(), paddle.rand([2, *IMAGE[1:]])
    network.head = nn.Conv2D(24, 2, 1)
    expected = own({"image": x})[1]
    BackboneSwap(own, at="backbone", freeze_stages=1)(network, SPEC)
    assert network.backbone.taps == ["output:1"]
    keys = [key for key in network.state_dict() if key.startswith("backbone.") and "project" not in key]
    assert keys[:4] == ["backbone.a.weight", "backbone.a.bias", "backbone.b.weight", "backbone.b.bias"]
    network.eval()
    maps = network.backbone({"image": x} if old is DictStages else x)
    np.testing.assert_allclose(maps[0].numpy(), network.backbone.project["0"](expected).numpy(), atol=1e-6)
    frozen = [name for name, p in network.backbone.named_parameters() if p.stop_gradient and "project" not in name]
    assert frozen == ["a.weight", "a.bias"]
    paddle.jit.save(network, str(tmp_path / "model"), input_spec=SPEC)
    assert np.allclose(paddle.jit.load(str(tmp_path / "model"))(x).numpy(), network(x).numpy(), atol=1e-5)


ShapeSpec = namedtuple("ShapeSpec", ["channels", "height", "width", "stride"], defaults=[None] * 4)


class Spec:
    def __init__(self, channels, stride):
        self.channels, self.stride = channels, stride


class Described(DictStages):
    """As ppdet's ResNet: the neck is built from ``out_shape``, a list of ShapeSpec; others tell numbers."""

    def __init__(self, strides):
        super().__init__(strides)
        self.feat_channels, self.out_channels = [16, 24], (16, 24)

    @property
    def out_shape(self):
        return [ShapeSpec(channels=16, stride=8), ShapeSpec(channels=24, stride=16)]


class Neck(nn.Layer):
    """Reads in ``forward``, too, what the backbone tells."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.LayerList([nn.Conv2D(s.channels, 4, 1) for s in backbone.out_shape])

    def forward(self, x):
        maps = self.backbone({"image": x})
        assert [m.shape[1] for m in maps] == [s.channels for s in self.backbone.out_shape]
        assert [SIZE // m.shape[2] for m in maps] == [s.stride for s in self.backbone.out_shape]
        return [layer(m) for layer, m in zip(self.lateral, maps, strict=True)]


@needs("paddleclas")
def test_necks_read_what_the_backbone_tells():
    network = Neck(Described([8, 16]))
    BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)
    assert network.backbone.out_shape == [ShapeSpec(16, None, None, 8), ShapeSpec(24, None, None, 16)]
    assert network.backbone.feat_channels == [16, 24]
    assert [m.shape for m in network(paddle.rand([2, *IMAGE[1:]]))] == [[2, 4, 8, 8], [2, 4, 4, 4]]


@needs("paddleclas")
def test_a_rebuilt_neck_reads_the_new_channels():
    def rebuild(network, channels):
        assert channels == [32, 64]
        return Neck(network.backbone)

    network = BackboneSwap("PPLCNet_x0_25", at="backbone", adapt="rebuild", rebuild=rebuild)(
        Neck(Described([8, 16])), SPEC
    )
    assert network.backbone.out_shape == [ShapeSpec(32, None, None, 8), ShapeSpec(64, None, None, 16)]
    assert network.backbone.feat_channels == [32, 64]
    assert network.backbone.out_channels == (32, 64)
    network(paddle.rand(IMAGE))


def test_descriptions_of_other_kinds():
    old = Stages([8], pack=None)
    old.out_channels, old.feat_channels, old.out_shape = 16, None, [Spec(16, 8)]

    class Head(nn.Layer):
        def __init__(self):
            super().__init__()
            self.backbone = old

        def forward(self, x):
            return self.backbone(x)

    network = BackboneSwap(light(), at="backbone", adapt="rebuild", rebuild=lambda net, channels: None)(Head(), SPEC)
    assert network.backbone.out_channels == 16
    assert not hasattr(network.backbone, "feat_channels")
    assert [vars(s) for s in network.backbone.out_shape] == [{"channels": 16, "stride": 8}]


def rand(*shape, dtype="float32"):
    return paddle.zeros(shape, dtype=dtype)


X, MASK, DEPTH = rand(1, 3, 8, 8), rand(1, 1, 8, 8), rand(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "keywords", "place"),
    [
        ((X,), {}, (0,)),
        (({"a": MASK, "image": X},), {}, (0, "image")),
        (({"Image": MASK, "other": X},), {}, (0, "Image")),  # the name goes before the channels
        (({"data": {"pixels": X}, "ids": rand(1)},), {}, (0, "data", "pixels")),
        ((rand(1, 8, dtype="int64"), X), {}, (1,)),
        ((X, rand(1, 3, 8, 8, dtype="int64")), {}, (0,)),  # whole numbers are labels
        ((rand(1, 3, 8, 8, dtype="uint8"),), {}, (0,)),
        ((MASK, X), {}, (1,)),
        ((), {"img": X, "mask": MASK}, ("img",)),
        (([X, rand(2)],), {}, (0, 0)),
    ],
)
def test_where_the_image_is(inputs, keywords, place):
    assert image_place(inputs, keywords).place == place


def test_images_that_cannot_be_told_apart_are_refused_with_all_keys_and_named_by_the_user():
    class Stereo(Stages):
        def forward(self, inputs):
            return super().forward(inputs["left"] + inputs["right"])

    def call(backbone, x):
        return backbone({"left": x, "right": 2 * x, "n": rand(1)})

    network, own = Net(Stereo([8]), call), light()
    both = (
        rf"got \[\{{'left': {IMAGE}, 'right': {IMAGE}, 'n': \[1\]\}}\]; which of \['0.left', '0.right'\] is the image"
    )
    with pytest.raises(ValueError, match=both.replace("[1, 3, 64, 64]", r"\[1, 3, 64, 64\]")):
        BackboneSwap(own, at="backbone")(network, SPEC)
    with pytest.raises(ValueError, match=r"image='centre' is none of its images \['0.left', '0.right'\]"):
        BackboneSwap(own, at="backbone", image="centre")(network, SPEC)
    with pytest.raises(TypeError, match=r"image must be the key, keyword or position of the image, got 1\.5"):
        BackboneSwap(own, at="backbone", image=1.5)
    BackboneSwap(own, at="backbone", image="right")(network, SPEC)
    network.eval()
    x = paddle.rand(IMAGE)
    assert np.array_equal(network(x).numpy(), network.head(own(2 * x)).numpy())


def test_a_backbone_without_an_image_is_refused_with_its_keys():
    class Tokens(nn.Layer):
        def forward(self, batch):
            return batch["tokens"]

    network = Net(Tokens(), lambda backbone, x: backbone({"tokens": x.flatten(2), "size": 3}))
    network.head = nn.Identity()
    with pytest.raises(ValueError, match=r"must take one image \[N, C, H, W\], got \[\{'tokens': .* 'size': 'int'"):
        BackboneSwap(light(), at="backbone")(network, SPEC)


def test_a_call_in_training_may_be_written_in_another_way():
    class Mixed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.backbone = DictStages([8])

        def forward(self, x):
            return self.backbone({"image": x, "label": 1} if self.training else {"image": x})

    network, own, x = Mixed(), light(), paddle.rand(IMAGE)
    BackboneSwap(own, at="backbone")(network, SPEC)
    network.train()
    assert np.array_equal(network(x)[0].numpy(), own(x).numpy())
    assert np.array_equal(network.backbone(x)[0].numpy(), own(x).numpy())
    with pytest.raises(ValueError, match="must take one image"):
        network.backbone({"image": None})


def test_specs_of_other_things_are_refused():
    with pytest.raises(TypeError, match=r"input_spec holds a str: give paddle.static.InputSpec"):
        BackboneSwap(light(), at="backbone")(Net(Stages([8]), lambda b, x: b(x)), ["1x3x64x64"])
    spec = [{"image": InputSpec([None, 3, None, 64])}]
    with pytest.raises(ValueError, match="input_spec has dynamic sizes"):
        BackboneSwap(light(), at="backbone")(Detector(), spec)


def test_the_search_leaves_no_gradients():
    network = paddle.vision.models.resnet18()
    find_taps(network, paddle.rand([1, 3, 64, 64]))
    assert all(parameter.grad is None for parameter in network.parameters())


class Vectors(nn.Layer):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.body(x)


class DictClassifier(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2D(3, 8, 3), nn.Linear(8, 5)

    def forward(self, inputs):
        return self.fc(self.conv(inputs["image"]).mean(axis=[2, 3])) * inputs["scale"]


def test_whole_classifiers_on_vectors_and_on_dictionaries():
    swap = BackboneSwap(Vectors(2))
    assert swap(Vectors(8), [InputSpec([None, 6])])(paddle.rand([2, 6])).shape == [2, 3]
    swap = BackboneSwap("mobilenet_v2", options={"scale": 0.25})
    spec = [{"image": InputSpec([None, *IMAGE[1:]]), "scale": InputSpec([None, 1])}]
    assert swap(DictClassifier(), spec)(paddle.rand(IMAGE)).shape == [1, 5]
    summary = swap.summary(warmup=0, repeats=1)
    assert (summary.before.error, summary.after.error) == (None, None)
