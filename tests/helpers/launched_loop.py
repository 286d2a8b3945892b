"""Run by test_training_loop.py on each of two processes: a loop of one's own gives the weights of ``fit``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import paddle
from byhand import CE
from toy import Images, TinyNet, equal_weights, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, MutualPeer, PACTQuantCallback, training_loop

BATCH = 8


def made(seed, **options):
    paddle.seed(seed)
    return TinyNet(**options)


def sgd(network):
    return paddle.optimizer.SGD(0.05, parameters=network.parameters())


def mutual():
    peer = made(9)
    return MutualPeer(peer, sgd(peer))


def spoilt():
    data = Images(32)
    data.images[16 + 8 + 1, 0, 0, 0] = float("nan")  # on one of two processes: both leave the batch out
    return data


CASES = {
    "features": (lambda: [DistillCallback(made(7, width=8), features={"conv1": "conv1"})], Images(32)),
    "pact": (lambda: [PACTQuantCallback()], Images(32)),
    "mutual": (lambda: [DistillCallback(mutual(), loss="dml")], Images(32)),
    "skipped": (lambda: [DistillCallback(made(7), loss="kl", on_nan="skip")], spoilt()),
}


def sampled(data):
    sampler = paddle.io.DistributedBatchSampler(data, batch_size=BATCH, shuffle=False)
    return paddle.io.DataLoader(data, batch_sampler=sampler)


def fitted(callbacks, data):
    model = hapi_model(made(3), optimizer="SGD", metrics=False)
    model.fit(sampled(data), epochs=2, verbose=0, callbacks=callbacks)
    return weights_of(model.network)


def looped(callbacks, data):
    network = made(3)
    optimizer, parallel, batches = sgd(network), paddle.DataParallel(network), sampled(data)
    with training_loop(parallel, optimizer, callbacks, epochs=2, steps=len(batches), loss=CE) as loop:
        for epoch in range(2):
            loop.epoch(epoch)
            network.train()
            for images, labels in batches:
                loop.loss(CE(parallel(images), labels), labels).backward()
                optimizer.step()
                optimizer.clear_grad()
    return weights_of(network)


def main(folder: Path) -> None:
    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    for name, (callbacks, data) in CASES.items():
        assert equal_weights(fitted(callbacks(), data), looped(callbacks(), data)), name
        (folder / f"{name}-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
