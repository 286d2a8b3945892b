"""Small networks and data that train in milliseconds, and a fingerprint of all that a callback could leave behind."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

CLASSES = 4
HAPIS_OWN = {"_accumulate", "num_iters", "stop_training"}  # what fit itself leaves in the model


class Images(paddle.io.Dataset):
    """Seeded noise with a bright quadrant that tells the class."""

    def __init__(self, count: int = 16, size: int = 8, target: str = "class"):
        random = np.random.RandomState(1)
        self.labels = (np.arange(count) % CLASSES).astype("int64")
        self.images = random.randn(count, 3, size, size).astype("float32")
        half = size // 2
        for image, label in zip(self.images, self.labels, strict=True):
            top, left = half * (label // 2), half * (label % 2)
            image[:, top : top + half, left : left + half] += 2
        self.target = target

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image, label = self.images[index], self.labels[index]
        return image, (label if self.target == "class" else image.mean(axis=(1, 2)))


class TinyNet(nn.Layer):
    """conv - BN - ReLU - conv - pool - linear; with dropout the random stream matters too."""

    def __init__(self, width: int = 4, outputs: int = CLASSES, dropout: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2D(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2D(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2D(width, width, 3, padding=1, bias_attr=False)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.conv2(x)
        return self.fc(self.dropout(x.mean(axis=[2, 3])))


class Strange(nn.Layer):
    """An operator without a form in Paddle 2, behind a layer with a name."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 4, 3)

    def forward(self, x):
        return nn.functional.lp_pool2d(self.stem(x), 2, 2, 2).flatten(1)


def hapi_model(
    network=None, *, optimizer: str = "Momentum", loss=None, metrics=True, learning_rate: float = 0.05, **options
):
    network = network or TinyNet()
    model = paddle.Model(network)
    make = getattr(paddle.optimizer, optimizer)
    model.prepare(
        make(learning_rate, parameters=network.parameters(), **options),
        loss or nn.CrossEntropyLoss(),
        paddle.metric.Accuracy() if metrics else None,
    )
    return model


def fit(model, callbacks=(), *, data=None, epochs: int = 1, evaluate: bool = True, **options):
    data = data or Images()
    model.fit(
        data,
        data if evaluate else None,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )


def weights_of(network) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in network.state_dict().items()}


def copied_weights(source, target) -> None:
    target.set_state_dict({key: value.clone() for key, value in source.state_dict().items()})


def equal_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def fingerprint(model, *others) -> dict:
    """Everything that an edit could leave behind, beside the values of the weights."""
    networks = [model.network, *others]
    return {
        "loss": id(model._loss),
        "model attributes": sorted(set(vars(model)) - HAPIS_OWN),
        "layers": [[(name, type(layer)) for name, layer in net.named_sublayers()] for net in networks],
        "hooks": [
            [
                (len(layer._forward_pre_hooks), len(layer._forward_post_hooks))
                for layer in net.sublayers(include_self=True)
            ]
            for net in networks
        ],
        "stop_gradient": [[p.stop_gradient for p in net.parameters()] for net in networks],
        "state keys": [list(net.state_dict()) for net in networks],
        "optimizer": [id(p) for p in model._optimizer._parameter_list],
        "modes of others": [[layer.training for layer in net.sublayers(include_self=True)] for net in others],
    }
