"""What DistillCallback costs over a hand-written loop that does the same work; run with ``-s`` to see the figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.vision.models import mobilenet_v2, resnet18

from paddlelite_callbacks import DistillCallback, FeatureTerm, cache_teacher

BATCH, SIZE, REPEATS = 32, 32, 60
TAPS = {"features.3": "layer1", "features.6": "layer2", "features.13": "layer3"}


class Noise(paddle.io.Dataset):
    def __init__(self, count=8 * BATCH):
        random = np.random.RandomState(0)
        self.images = random.randn(count, 3, SIZE, SIZE).astype("float32")
        self.labels = random.randint(0, 10, count)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def networks():
    paddle.seed(0)
    return mobilenet_v2(scale=0.5, num_classes=10), resnet18(num_classes=10)


def collated(data, step):
    rows = [data[(BATCH * step + i) % len(data)] for i in range(BATCH)]
    return [paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True)]


def optimizer(parameters):
    return paddle.optimizer.Momentum(0.01, parameters=parameters)


def hinton(s, t):
    return F.kl_div(F.log_softmax(s / 4.0), F.softmax(t / 4.0), reduction="batchmean") * 16.0


class Loop:
    """The hand-written loop: no teacher, its outputs, or its outputs and three projected features."""

    def __init__(self, teacher=None, taps=None):
        self.student, self.teacher, self.taps, self.data = networks()[0], teacher, taps or {}, Noise()
        self.kept = {}
        self.projections = paddle.nn.LayerDict()
        for side, network, names in (("s", self.student, self.taps), ("t", teacher, self.taps.values())):
            layers = dict(network.named_sublayers()) if names else {}
            for name in names:
                layers[name].register_forward_post_hook(self.keep(side, name))
        if self.taps:
            self.student(paddle.rand([2, 3, SIZE, SIZE]))
            teacher(paddle.rand([2, 3, SIZE, SIZE]))
            for i, (a, b) in enumerate(self.taps.items()):
                self.projections[str(i)] = paddle.nn.Conv2D(
                    self.kept["s", a].shape[1], self.kept["t", b].shape[1], 1, bias_attr=False
                )
        self.optimizer = optimizer([*self.student.parameters(), *self.projections.parameters()])

    def keep(self, side, name):
        def hook(layer, x, y):
            self.kept[side, name] = y

        return hook

    def step(self, index):
        images, labels = collated(self.data, index)
        self.student.train()
        if self.teacher is not None:
            self.teacher.eval()
            with paddle.no_grad():
                taught = self.teacher(images)
        output = self.student(images)
        loss = task = F.cross_entropy(output, labels)
        figures = [task]
        if self.teacher is not None:
            distilled = hinton(output, taught)
            for i, (a, b) in enumerate(self.taps.items()):
                ours, theirs = self.projections[str(i)](self.kept["s", a]), self.kept["t", b]
                if ours.shape != theirs.shape:
                    ours = F.adaptive_avg_pool2d(ours, theirs.shape[2:])
                distilled = distilled + 0.5 * F.mse_loss(ours, theirs)
            loss = task + distilled
            figures += [distilled]
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.kept.clear()
        return [float(loss), *(float(figure) for figure in figures)]  # a bar shows them


def fitted(callback):
    student, _ = networks()
    model = paddle.Model(student)
    model.prepare(optimizer(student.parameters()), paddle.nn.CrossEntropyLoss())
    return lambda loader: model.fit(loader, epochs=1, verbose=0, callbacks=callback)


def measure(interleaved, report, name, callback, loop, data, target):
    seconds = interleaved.fit_against(
        fitted(callback), loop.step, lambda step: collated(data, step), repeats=REPEATS, warmup=5
    )
    figures = interleaved.summary(seconds, "by hand")
    report(f"distill-{name}", {**figures["fit"], "by_hand_p50_ms": figures["by hand"]["p50_ms"], "target": target})


def test_hapi_alone(interleaved, report):
    """What ``fit`` itself costs, to be told apart from the callback's share."""
    measure(interleaved, report, "none", [], Loop(), Noise(), None)


def test_output_distillation(interleaved, report):
    teacher = networks()[1]
    measure(interleaved, report, "outputs", [DistillCallback(teacher)], Loop(networks()[1]), Noise(), 1.02)


def test_three_feature_taps(interleaved, report):
    teacher = networks()[1]
    features = [FeatureTerm(a, b) for a, b in TAPS.items()]
    callback = DistillCallback(teacher, loss="kl", features=features)
    measure(interleaved, report, "features", [callback], Loop(networks()[1], TAPS), Noise(), 1.05)


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
def test_stored_outputs_against_no_teacher(interleaved, report, tmp_path, verify):
    cached = cache_teacher(networks()[1], Noise(), tmp_path / "t", verbose=0)
    cached.verify = verify
    name = "cache" if verify else "cache-unverified"
    measure(interleaved, report, name, [DistillCallback(cached)], Loop(), cached, 1.05)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory(report):
    """Peak resident memory in a process each; "kept" is the loop with the teacher's activations kept by mistake."""
    figures = {}
    for mode in ("idle", "plain", "by hand", "callback", "kept"):
        out = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, mode], capture_output=True, text=True, check=True
        )
        figures[mode] = float(out.stdout.split()[-1])
    figures["callback over by hand"] = figures["callback"] / figures["by hand"]
    figures["kept over by hand"] = figures["kept"] / figures["by hand"]
    report("distill-memory-mb", figures)


def _peak_memory(mode: str) -> None:
    global BATCH
    BATCH = 128
    student, teacher = networks()
    if mode in ("plain", "by hand"):
        loop = Loop(None if mode == "plain" else teacher)
        for step in range(3):
            loop.step(step)
    elif mode == "callback":
        data = Noise()
        batches = [collated(data, step) for step in range(3)]
        fitted([DistillCallback(teacher)])(batches)
    elif mode == "kept":
        updater, data = optimizer(student.parameters()), Noise()
        for step in range(3):
            images, labels = collated(data, step)
            taught, output = teacher(images), student(images)
            (F.cross_entropy(output, labels) + hinton(output, taught)).backward()
            updater.step()
            updater.clear_grad()
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # ru_maxrss would be the parent's, if larger
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)  # noqa: T201


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _peak_memory(sys.argv[1])
