# ruff: noqa: B905 (export knows no `strict`)
"""The papers' networks written out literally, under the names and shapes of the guide's weights: plain and slow."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn


def conv_norm(i, o, k=1, stride=1, groups=1):
    layer = nn.Layer()
    layer.conv = nn.Conv2D(i, o, k, stride=stride, padding=k // 2, groups=groups, bias_attr=False)
    layer.norm = nn.BatchNorm2D(o)
    return layer


def run(layer, x, act=None):
    x = layer.norm(layer.conv(x))
    return act(x) if act else x


def pairs(i, o, stride, relu):
    parts = [
        nn.Conv2D(i, i, 3, stride=stride, padding=1, groups=i, bias_attr=False),
        nn.BatchNorm2D(i),
        nn.Conv2D(i, o, 1, bias_attr=False),
        nn.BatchNorm2D(o),
    ]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


def shuffle(x):
    n, c, h, w = x.shape
    return x.reshape([n, 2, c // 2, h, w]).transpose([0, 2, 1, 3, 4]).reshape([n, c, h, w])


class Weighting(nn.Layer):
    """Conditional channel weighting: Lite-HRNet, section 3.2."""

    def __init__(self, channels, ratio):
        super().__init__()
        half = [c // 2 for c in channels]
        self.half = half
        self.cross_resolution_weighting = nn.Layer()
        self.cross_resolution_weighting.conv1 = conv_norm(sum(half), sum(half) // ratio)
        self.cross_resolution_weighting.conv2 = conv_norm(sum(half) // ratio, sum(half))
        self.depthwise_convs = nn.LayerList([conv_norm(c, c, 3, groups=c) for c in half])
        self.spatial_weighting = nn.LayerList()
        for c in half:
            layer = nn.Layer()
            layer.conv1, layer.conv2 = nn.Layer(), nn.Layer()
            layer.conv1.conv, layer.conv2.conv = nn.Conv2D(c, c // 4, 1), nn.Conv2D(c // 4, c, 1)
            self.spatial_weighting.append(layer)

    def forward(self, xs):
        keep, work = zip(*[paddle.chunk(x, 2, axis=1) for x in xs])
        size = work[-1].shape[2:]
        low = paddle.concat([F.adaptive_avg_pool2d(x, size) for x in work], axis=1)
        cross = self.cross_resolution_weighting
        weights = paddle.split(run(cross.conv2, run(cross.conv1, low, F.relu), F.sigmoid), self.half, axis=1)
        out = []
        for x, kept, a, dw, sw in zip(work, keep, weights, self.depthwise_convs, self.spatial_weighting):
            x = run(dw, x * F.interpolate(a, size=x.shape[2:], mode="nearest"))
            x = x * F.sigmoid(sw.conv2.conv(F.relu(sw.conv1.conv(F.adaptive_avg_pool2d(x, 1)))))
            out.append(shuffle(paddle.concat([kept, x], axis=1)))
        return out


class Unit(nn.Layer):
    """ShuffleNetV2's unit of stride 1."""

    def __init__(self, channels):
        super().__init__()
        c = channels // 2
        self.branch2 = nn.LayerList([conv_norm(c, c), conv_norm(c, c, 3, groups=c), conv_norm(c, c)])

    def forward(self, x):
        kept, x = paddle.chunk(x, 2, axis=1)
        x = run(self.branch2[2], run(self.branch2[1], run(self.branch2[0], x, F.relu)), F.relu)
        return shuffle(paddle.concat([kept, x], axis=1))


class Module(nn.Layer):
    def __init__(self, channels, lite):
        super().__init__()
        self.lite, n = lite, len(channels)
        if lite:
            self.layers = nn.LayerList([Weighting(channels, 8) for _ in range(2)])
        else:
            self.layers = nn.LayerList([nn.LayerList([Unit(c), Unit(c)]) for c in channels])
        rows = []
        for i in range(n):
            row = nn.LayerDict()
            for j in range(n):
                if j > i:
                    row[str(j)] = nn.Sequential(
                        nn.Conv2D(channels[j], channels[i], 1, bias_attr=False), nn.BatchNorm2D(channels[i])
                    )
                elif j < i:
                    last = i - j - 1
                    row[str(j)] = nn.Sequential(
                        *[
                            pairs(channels[j], channels[i] if k == last else channels[j], 2, k != last)
                            for k in range(i - j)
                        ]
                    )
            rows.append(row)
        self.fuse_layers = nn.LayerList(rows)

    def forward(self, xs):
        if self.lite:
            for layer in self.layers:
                xs = layer(xs)
        else:
            xs = [units[1](units[0](x)) for units, x in zip(self.layers, xs)]
        xs, fused = list(xs), []
        for i, row in enumerate(self.fuse_layers):
            y = xs[0] if i == 0 else row["0"](xs[0])
            y = y + y  # as the authors' code: the first term counts twice
            for j in range(1, len(xs)):
                if j == i:
                    y = y + xs[j]
                elif j < i:
                    y = y + row[str(j)](xs[j])
                else:
                    y = y + F.interpolate(row[str(j)](xs[j]), size=xs[i].shape[2:], mode="nearest")
            if i == 0:
                xs[0] = y  # as the authors' code: the fused map goes down
            fused.append(F.relu(y))
        return fused


class LiteReference(nn.Layer):
    def __init__(self, modules, width, lite, joints=17):
        super().__init__()
        b = self.backbone = nn.Layer()
        b.stem = nn.Layer()
        b.stem.conv1 = conv_norm(3, 32, 3, stride=2)
        b.stem.branch1 = nn.LayerList([conv_norm(16, 16, 3, stride=2, groups=16), conv_norm(16, 16)])
        b.stem.expand_conv = conv_norm(16, 32)
        b.stem.depthwise_conv = conv_norm(32, 32, 3, stride=2, groups=32)
        b.stem.linear_conv = conv_norm(32, 16)
        before = [32]
        for s, count in enumerate(modules):
            channels = [width * 2**i for i in range(s + 2)]
            changes = nn.LayerDict()
            for i, c in enumerate(channels):
                if i >= len(before):
                    changes[str(i)] = nn.Sequential(pairs(before[-1], c, 2, True))
                elif before[i] != c:
                    changes[str(i)] = pairs(before[i], c, 1, True)
            setattr(b, f"transition{s}", changes)
            setattr(b, f"stage{s}", nn.LayerList([Module(channels, lite) for _ in range(count)]))
            before = channels
        b.head_layer = nn.Layer()
        b.head_layer.projects = nn.LayerList()
        for i, c in reversed(list(enumerate(before))):
            project = nn.Layer()
            project.depthwise_conv = conv_norm(c, c, 3, groups=c)
            project.pointwise_conv = conv_norm(c, before[max(i - 1, 0)])
            b.head_layer.projects.append(project)
        self.final_conv = nn.Conv2D(before[0], joints, 1)

    def features(self, x):
        b, stem = self.backbone, self.backbone.stem
        one, two = paddle.chunk(run(stem.conv1, x, F.relu), 2, axis=1)
        one = run(stem.branch1[1], run(stem.branch1[0], one), F.relu)
        two = run(stem.linear_conv, run(stem.depthwise_conv, run(stem.expand_conv, two, F.relu)), F.relu)
        maps = [shuffle(paddle.concat([one, two], axis=1))]
        for s in range(3):
            changes = getattr(b, f"transition{s}")
            sources = [maps[min(i, len(maps) - 1)] for i in range(s + 2)]
            maps = [changes[str(i)](m) if str(i) in changes else m for i, m in enumerate(sources)]
            for module in getattr(b, f"stage{s}"):
                maps = module(maps)
        out, last = [], None
        for x, project in zip(reversed(maps), b.head_layer.projects):
            if last is not None:
                x = x + F.interpolate(last, size=x.shape[2:], mode="bilinear", align_corners=True)
            last = run(project.pointwise_conv, run(project.depthwise_conv, x), F.relu)
            out.insert(0, last)
        return out

    def forward(self, x):
        return self.final_conv(self.features(x)[0])


class HRReference(nn.Layer):
    """HRNet with one output, as the pose paper has it."""

    def __init__(self, width, joints=17, modules=(1, 4, 3), blocks=4):
        super().__init__()
        self.blocks = blocks
        b = self.backbone = nn.Layer()
        b.conv_layer1_1, b.conv_layer1_2 = conv_norm(3, 64, 3, stride=2), conv_norm(64, 64, 3, stride=2)
        b.la1 = nn.Layer()
        for k in range(blocks):
            block = nn.Layer()
            block.conv1, block.conv2, block.conv3 = (
                conv_norm(64 if k == 0 else 256, 64),
                conv_norm(64, 64, 3),
                conv_norm(64, 256),
            )
            if k == 0:
                block.conv_down = conv_norm(64, 256)
            setattr(b.la1, f"block_layer2_{k + 1}", block)
        before = [256]
        self.plan = tuple(zip((2, 3, 4), modules))
        for n, (branches, modules) in enumerate(self.plan):
            channels = [width * 2**i for i in range(branches)]
            change = nn.Layer()
            for i, c in enumerate(channels):
                if i >= len(before):
                    setattr(change, f"transition_tr{n + 1}_layer_{i + 1}", conv_norm(before[-1], c, 3, stride=2))
                elif before[i] != c:
                    setattr(change, f"transition_tr{n + 1}_layer_{i + 1}", conv_norm(before[i], c, 3))
            setattr(b, f"tr{n + 1}", change)
            stage = nn.Layer()
            for m in range(modules):
                outputs = 1 if (n == 2 and m == modules - 1) else branches
                setattr(stage, f"stage_st{n + 2}_{m + 1}", self.module(f"st{n + 2}_{m + 1}", channels, outputs, blocks))
            setattr(b, f"st{n + 2}", stage)
            before = channels
        self.final_conv = nn.Conv2D(width, joints, 1)

    @staticmethod
    def module(name, channels, outputs, blocks):
        module = nn.Layer()
        module.branches_func, module.fuse_func = nn.Layer(), nn.Layer()
        for i, c in enumerate(channels):
            for j in range(blocks):
                block = nn.Layer()
                block.conv1, block.conv2 = conv_norm(c, c, 3), conv_norm(c, c, 3)
                setattr(module.branches_func, f"bb_{name}_branch_layer_{i + 1}_{j + 1}", block)
        for i in range(outputs):
            for j in range(len(channels)):
                path = f"residual_{name}_layer_{i + 1}_{j + 1}"
                if j > i:
                    setattr(module.fuse_func, path, conv_norm(channels[j], channels[i]))
                for k in range(i - j):
                    out = channels[i] if k == i - j - 1 else channels[j]
                    setattr(module.fuse_func, f"{path}_{k + 1}", conv_norm(channels[j], out, 3, stride=2))
        module.name_, module.outputs, module.blocks = name, outputs, blocks
        return module

    def forward(self, x):
        b = self.backbone
        x = run(b.conv_layer1_2, run(b.conv_layer1_1, x, F.relu), F.relu)
        for k in range(self.blocks):
            block = getattr(b.la1, f"block_layer2_{k + 1}")
            y = run(block.conv3, run(block.conv2, run(block.conv1, x, F.relu), F.relu))
            x = F.relu(y + (run(block.conv_down, x) if k == 0 else x))
        maps = [x]
        for n, (branches, modules) in enumerate(self.plan):
            change = getattr(b, f"tr{n + 1}")
            sources = [maps[min(i, len(maps) - 1)] for i in range(branches)]
            names = [f"transition_tr{n + 1}_layer_{i + 1}" for i in range(branches)]
            maps = [
                run(getattr(change, name), m, F.relu) if hasattr(change, name) else m for name, m in zip(names, sources)
            ]
            for m in range(modules):
                maps = self.exchange(getattr(getattr(b, f"st{n + 2}"), f"stage_st{n + 2}_{m + 1}"), maps)
        return self.final_conv(maps[0])

    @staticmethod
    def exchange(module, maps):
        maps = list(maps)
        for i in range(len(maps)):
            for j in range(module.blocks):
                block = getattr(module.branches_func, f"bb_{module.name_}_branch_layer_{i + 1}_{j + 1}")
                maps[i] = F.relu(maps[i] + run(block.conv2, run(block.conv1, maps[i], F.relu)))
        fused = []
        for i in range(module.outputs):
            y = maps[i]
            for j, source in enumerate(maps):
                path = f"residual_{module.name_}_layer_{i + 1}_{j + 1}"
                if j > i:
                    up = run(getattr(module.fuse_func, path), source)
                    y = y + F.interpolate(up, scale_factor=2 ** (j - i), mode="nearest")
                elif j < i:
                    for k in range(i - j):
                        act = None if k == i - j - 1 else F.relu
                        source = run(getattr(module.fuse_func, f"{path}_{k + 1}"), source, act)
                    y = y + source
            fused.append(F.relu(y))
        return fused
