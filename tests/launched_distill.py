"""Run by test_distill_launch.py on each of two processes: trains with distillation and writes what came out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from toy import Images, TinyNet, hapi_model

from paddlelite_callbacks import DistillCallback, EMATeacher, MutualPeer, cache_teacher


class NoNorm(TinyNet):
    """Without batch norm two halves of a batch are the whole batch."""

    def forward(self, x):
        return self.fc(self.conv2(self.relu(self.conv1(x))).mean(axis=[2, 3]))


def teacher():
    paddle.seed(1)
    return NoNorm(width=8)


def cases(folder):
    paddle.seed(9 + paddle.distributed.get_rank())  # rank 0's peer is the one that counts
    peer = NoNorm()
    optimizer = paddle.optimizer.Adam(0.01, parameters=peer.parameters())
    data = Images(32)
    cached = cache_teacher(teacher(), data, folder / "cache", progress=False)
    yield "plain", DistillCallback(teacher()), data, None
    yield "features", DistillCallback(teacher(), loss="kl", features={"conv*": "conv*"}), data, None
    yield "average", DistillCallback(EMATeacher(0.9)), data, None
    yield "mutual", DistillCallback(MutualPeer(peer, optimizer), loss="dml"), data, peer
    yield "kept", DistillCallback(MutualPeer(peer, optimizer, monitor="loss"), loss="dml"), data, peer
    yield "cached", DistillCallback(cached), cached, None
    spoilt = Images(32)
    spoilt.images[16 + 8 + 1, 0, 0, 0] = float("nan")  # on one of two processes: both leave the batch out
    yield "skipped", DistillCallback(teacher(), on_nan="skip"), spoilt, None


def main(folder: Path, batch_size: int) -> None:
    rank, out = paddle.distributed.get_rank(), {}
    paddle.distributed.init_parallel_env() if paddle.distributed.get_world_size() > 1 else None
    for name, callback, data, peer in cases(folder):
        paddle.seed(3)  # the same start on all ranks and in one process
        kept = name == "kept"  # the student hardly learns: its peer's weights must end up in the model, on all ranks
        model = hapi_model(NoNorm(), learning_rate=1e-6 if kept else 0.05)
        evaluation = Images(24) if kept else None
        # rank by rank another stream: what is made in training must still be equal
        paddle.seed(3 + rank)
        save = {"save_dir": str(folder / f"{name}-{batch_size}"), "callbacks": [callback]}
        model.fit(data, evaluation, batch_size=batch_size, epochs=2, shuffle=False, verbose=0, **save)
        for key, value in model.network.state_dict().items():
            out[f"{name}/{key}"] = value.numpy()
        for key, value in callback.bridges.state_dict().items():
            out[f"{name}/bridges/{key}"] = value.numpy()
        for key, value in ({} if peer is None else peer.state_dict()).items():
            out[f"{name}/peer/{key}"] = value.numpy()
        if kept:
            mutual = callback._source.peer
            assert mutual.better == "peer", mutual.figures
            for who, figures in mutual.figures.items():
                out[f"kept/{who}"] = np.array([figures["loss"], figures["acc"]])
    np.savez(folder / f"weights-{batch_size}-{rank}.npz", **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
