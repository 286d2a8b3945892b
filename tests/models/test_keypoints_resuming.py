"""Keypoint trainings that go on after an interruption come to the weights of one that had none."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

import numpy as np
import paddle
import pytest
from keypoint_toy import Tiny
from places import ROOT

sys.path.insert(0, str(ROOT / "examples" / "keypoints"))

import distilling
import generator
import resuming
import settings
import train
from coco import read_people
from dataset import Augment, KeypointDataset

from paddlelite_callbacks import PACTQuantCallback

RECIPE = settings.Settings(
    size=(32, 32), sigma=1.0, batch_size=2, epochs=2, learning_rate=1e-3, warmup_steps=3, milestones=(1,)
)
DISTILLED = ["--distill-features", "backbone.body.0=backbone.body.0", "--feature-loss", "fitnet"]


class Killed(Exception):
    pass


class KillAt(paddle.callbacks.Callback):
    """Stop after a batch of a part, as if the process had ended."""

    def __init__(self, part):
        super().__init__()
        self.part, self.begun = part, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = epoch

    def on_train_batch_end(self, step, logs=None):
        if self.begun == self.part:
            raise Killed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    people = read_people(*generator.generate(tmp_path_factory.mktemp("toy"), 12, seed=3))
    part = {"sigma": RECIPE.sigma, "unbiased": True, "keep_images": True}
    augmented = KeypointDataset(people, RECIPE.size, augment=Augment(), **part)
    return augmented, KeypointDataset(people, RECIPE.size, **part).first(2)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setitem(settings.NETWORKS, "tiny", Tiny)
    monkeypatch.setattr(resuming, "_BATCHES", 3)
    monkeypatch.setattr(train, "evaluate", lambda *arguments: {})  # of the weights, which are compared


def weights(folder, data, kinds, *, seed=0, stop=None, **changed):
    """Train as `train.main` does, in a process's own way: the names of parameters count from 0."""
    parser = argparse.ArgumentParser()
    distilling.add_distill_flags(parser)
    flags = parser.parse_args(DISTILLED if "distilled" in kinds else [])
    flags.out, flags.seed, flags.workers, flags.dark, flags.udp, flags.verbose = folder, seed, 0, True, False, 0
    recipe = replace(RECIPE, **changed)
    with paddle.utils.unique_name.guard():
        paddle.seed(seed)
        student = settings.network("tiny")
        teacher = folder.parent / "teacher.pdparams"
        if not teacher.is_file():
            paddle.save(student.state_dict(), str(teacher))
        progress = resuming.Progress.of(folder, train.config_of(flags, recipe, data[0]), resume=True)
        if progress.weights:
            settings.load_weights(student, progress.weights)
        callbacks = [KillAt(stop - progress.done)] if stop is not None else []
        if "distilled" in kinds:
            callbacks.append(distilling.distillation(flags, "tiny", teacher, resume=progress.of_distillation))
        if "pact" in kinds:
            callbacks.append(PACTQuantCallback())
        train.fit(student, *data, recipe, flags, callbacks, progress)
    return {key: value.numpy() for key, value in student.state_dict().items()}


@pytest.mark.parametrize("kinds", [(), ("distilled",), ("pact",), ("distilled", "pact")], ids="+".join)
def test_an_interrupted_training_ends_in_the_same_weights(kinds, data, tmp_path):
    whole = weights(tmp_path / "whole", data, kinds)
    parts = 2 * -(-len(data[0]) // RECIPE.batch_size) // 3
    assert parts >= 4
    for stop in (1, 3):  # twice: in the first epoch and in the second
        with pytest.raises(Killed):
            weights(tmp_path / "stopped", data, kinds, stop=stop)
    resumed = weights(tmp_path / "stopped", data, kinds)
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value, err_msg=key)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert [[json.loads(line)[key] for key in ("epoch", "loss")] for line in logs[0]] == [
        [json.loads(line)[key] for key in ("epoch", "loss")] for line in logs[1]
    ]
    finished = weights(tmp_path / "stopped", data, kinds)  # nothing is left to train
    np.testing.assert_array_equal(finished["head.weight"], whole["head.weight"])


def test_another_recipe_is_refused_and_without_resume_it_begins_again(data, tmp_path):
    with pytest.raises(Killed):
        weights(tmp_path / "run", data, (), stop=1)
    with pytest.raises(ValueError, match=r"other options \(learning_rate: 0.001 then, 0.5 now\): give the same"):
        weights(tmp_path / "run", data, (), learning_rate=0.5)
    again = resuming.Progress.of(tmp_path / "run", {"seed": 1}, resume=False)
    assert (again.done, again.prefix) == (0, None)
    assert not list((tmp_path / "run" / "checkpoints").glob("*/*"))


def test_all_parts_of_an_epoch_together_take_each_sample_once(monkeypatch):
    monkeypatch.setattr(resuming, "_BATCHES", 4)
    items = paddle.io.TensorDataset([paddle.arange(45)])
    orders = []
    for seed, first in ((0, 0), (1, 0), (0, 3)):
        sampler = resuming.PartSampler(items, 2, seed)
        assert (sampler.parts, sampler.batches) == (6, 23)
        taken = []
        for part in range(first, 12):
            sampler.part = part
            batches = list(sampler)
            assert len(batches) == len(sampler)
            taken.append([index for batch in batches for index in batch])
        orders.append(taken)
    assert orders[2] == orders[0][3:]  # whatever part it begins with
    for taken in orders[:2]:
        for epoch in (taken[:6], taken[6:]):
            assert sorted(index for part in epoch for index in part) == list(range(45))
    assert orders[0][:6] != orders[0][6:]
    assert orders[0] != orders[1]
