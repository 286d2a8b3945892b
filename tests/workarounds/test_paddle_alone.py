"""Each defect of Paddle that is worked around, without us: a test fails on the day Paddle mends it.

Then its workaround, named in the test, can go.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import linecache
import multiprocessing
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from installed import needs
from paddle import nn
from paddle.base import framework
from paddle.jit.dy2static import convert_call_func as calls
from paddle.jit.dy2static import origin_info
from paddle.jit.dy2static import program_translator as translator
from paddle.jit.dy2static.parameter_recorder import _global_parameter_recorder as recorder
from paddle.jit.dy2static.utils import get_temp_dir
from paddle.static import InputSpec
from toy import Images, TinyNet, hapi_model

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.workarounds import tracing
from paddlelite_callbacks.workarounds.tracing import without_repeated_conversions

SPEC = [InputSpec([None, 3, 8, 8], "float32", "x")]


def saved(folder: Path, network: nn.Layer | None = None) -> Path:
    network = network or TinyNet()
    network.eval()
    paddle.jit.save(network, str(folder / "model"), input_spec=SPEC)
    return folder / "model.json"


def grown_by(work, count) -> int:
    """Return by how much ``count()`` grows over three calls, after a first one."""
    work()
    gc.collect()
    before = count()
    for _ in range(3):
        work()
    gc.collect()
    return count() - before


def test_call_stacks_are_kept(tmp_path):
    """`tracing.without_call_stacks`."""
    frames = grown_by(
        lambda: saved(tmp_path), lambda: sum(isinstance(o, traceback.FrameSummary) for o in gc.get_objects())
    )
    assert frames > 500


def test_names_of_scopes_are_kept(tmp_path):
    """`tracing.without_scope_names`."""

    def scopes(node) -> int:
        return 1 + sum(scopes(child) for children in node._children.values() for child in children)

    assert grown_by(lambda: saved(tmp_path), lambda: scopes(framework._name_struct)) >= 3


def test_generated_sources_are_kept(tmp_path):
    """`tracing.without_generated_sources`."""
    folder = get_temp_dir()
    for count in (
        lambda: len(list(Path(folder).rglob("*.py*"))),
        lambda: sum(name.startswith(folder) for name in linecache.cache),
        lambda: len(origin_info.global_origin_info_map),
    ):
        assert grown_by(lambda: saved(tmp_path, copy.deepcopy(TinyNet())), count) >= 3


class Block(nn.Layer):
    """A layer of the user's own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        return F.relu(self.conv(x))


@pytest.mark.parametrize("ours", [False, True])
def test_methods_are_converted_for_each_layer_of_a_class(ours, tmp_path, monkeypatch):
    """`tracing.without_repeated_conversions`."""
    converted, asked = [], []
    convert, functions = translator.FunctionCache._convert, calls.get_module_functions
    monkeypatch.setattr(translator.FunctionCache, "_convert", lambda s, f: converted.append(f) or convert(s, f))
    monkeypatch.setattr(calls, "get_module_functions", lambda module: asked.append(module) or functions(module))
    before = vars(translator._FUNCTION_CACHE).copy(), calls.is_unsupported
    with without_repeated_conversions() if ours else contextlib.nullcontext():
        for _ in range(2):
            saved(tmp_path, nn.Sequential(*(Block() for _ in range(4))))
    blocks = [function for function in converted if function.__qualname__ == "Block.forward"]
    assert len(blocks) == (1 if ours else 8)
    looked_up = len(asked) // len(calls.BUILTIN_LIKELY_MODULES)
    assert looked_up < 10 if ours else looked_up > 20
    assert (vars(translator._FUNCTION_CACHE), calls.is_unsupported) == before


def test_programs_are_the_same_with_methods_converted_once(tmp_path, monkeypatch):
    network = nn.Sequential(*(Block() for _ in range(3)), TinyNet())
    written = [export_paddle(network, tmp_path / "ours", input_spec=SPEC)]
    monkeypatch.setattr(tracing, "_cache", None)
    monkeypatch.setattr(tracing, "_calls", None)
    written.append(export_paddle(network, tmp_path / "paddle", input_spec=SPEC))
    assert [file.read_bytes() for file in written[0].files] == [file.read_bytes() for file in written[1].files]


def test_a_conversion_is_not_kept_beyond_its_block(tmp_path):
    """It holds the values of globals and closures: another export sees those of its time."""
    factor = 2.0

    class Scaled(TinyNet):
        def forward(self, x):
            return super().forward(x) * factor

    x, files = np.ones([1, 3, 8, 8], "float32"), {}
    network = Scaled()
    network.eval()
    for factor in (2.0, 3.0):
        program = export_paddle(network, tmp_path / str(factor), input_spec=SPEC)
        (files[factor],) = ENGINES["paddle"].load(program, threads=1)([x])
        np.testing.assert_allclose(files[factor], network(paddle.to_tensor(x)).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(files[3.0], files[2.0] * 1.5, rtol=1e-5, atol=1e-6)


SAVES = """
import paddle
from paddle.static import InputSpec
paddle.jit.save(paddle.nn.Linear(2, 2), "model", input_spec=[InputSpec([1, 2], "float32", "x")])
print("saved")
"""


def test_sources_are_written_into_home(tmp_path):
    """`tracing.with_own_source_folder`; the same child with a HOME that it can write to is the counter-check."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for home, ends_well in (("folder", True), ("file", False)):
        environment = {**os.environ, "HOME": str(tmp_path / home)}
        done = subprocess.run(
            [sys.executable, "-c", SAVES], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert ("saved" in done.stdout) == ends_well, done.stderr[-1000:]


def test_parameters_of_failed_traces_are_kept(tmp_path):
    """`tracing.without_failed_traces`."""

    class Failing(TinyNet):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("on purpose")

    recorder.params_dict.clear()
    recorder.tensor2value.clear()
    with pytest.raises(RuntimeError, match="on purpose"):
        saved(tmp_path, Failing())
    left = len(recorder.params_dict)
    recorder.params_dict.clear()
    recorder.tensor2value.clear()
    assert left == 1


def test_the_constructor_of_tensors_leaks_a_list():
    """`constructor_leak.without_argument_lists`."""
    array = np.ones(3, "float32")

    def work():
        for _ in range(20):
            paddle.to_tensor(array)

    assert grown_by(work, lambda: sum(type(o) is list for o in gc.get_objects())) > 45


WAITS = """
import paddle
class Data(paddle.io.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index):
        if index == 5: raise RuntimeError("sample 5")
        return paddle.zeros([2])
print("reads", flush=True)
for batch in paddle.io.DataLoader(Data(), batch_size=2): pass
"""


def test_paddle_alone_waits_for_ever():
    """`data_loader._RaisingIterator`, and that `cache_teacher` reads without a loader."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"reads\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()


class Crash(paddle.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
        raise ZeroDivisionError


def test_paddle_alone_leaves_its_workers_behind():
    """`data_loader.ended_with_the_epoch`."""
    with pytest.raises(ZeroDivisionError):
        hapi_model().fit(Images(64), batch_size=4, num_workers=2, verbose=0, callbacks=[Crash()])
    gc.collect()
    workers = multiprocessing.active_children()
    iterators = [o for o in gc.get_objects() if type(o).__name__ == "_DataLoaderIterMultiProcess" and not o._shutdown]
    for iterator in iterators:
        iterator._exit_thread_expectedly()
        iterator._try_shutdown_all(5)
        iterator._thread.join()
    assert len(workers) == 2
    assert len(iterators) == 1


READS = """
import signal
import numpy as np
import paddle
class Data(paddle.io.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return np.zeros(2, "float32")
def own(*_): pass
signal.signal(signal.SIGCHLD, own)
before = np.random.get_state()[2], np.random.get_state()[1].tolist()
for batch in paddle.io.DataLoader(Data(), batch_size=2, num_workers=1): pass
print(signal.getsignal(signal.SIGCHLD) is own)
print((np.random.get_state()[2], np.random.get_state()[1].tolist()) == before)
"""


def test_a_loader_with_workers_changes_the_process():
    """`data_loader.read_undisturbed`: first line the handler of SIGCHLD, second NumPy's random stream."""
    done = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True, timeout=300)
    assert done.stdout.split()[-2:] == ["False", "False"], done.stderr[-1000:]


class Stream(paddle.io.IterableDataset):
    def __iter__(self):
        return iter([Images()[i] for i in range(4)])


def test_the_length_of_a_stream_is_a_value_error():
    """`data_loader.known_length`, and `len` of what `ended_with_the_epoch` gives."""
    with pytest.raises(ValueError, match="length of IterableDataset not supported"):
        len(paddle.io.DataLoader(Stream(), batch_size=2))


def test_evaluate_takes_no_stream():
    """`data_loader.loader_of`."""
    with pytest.raises(Exception, match=r"IterableDataset|__getitem__|length|len\(\)"):
        hapi_model().evaluate(Stream(), batch_size=2, verbose=0)


def test_onednn_runs_no_interpolation(tmp_path):
    """`paddleclas_layers.upsample_nearest`, and `export.interpolation`."""

    class Upsampled(TinyNet):
        def forward(self, x):
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))

    program = saved(tmp_path, Upsampled())
    artefact = Artefact(kind="paddle", path=program, files=(program, program.with_suffix(".pdiparams")))
    with pytest.raises(Exception, match="ConvertPirAttribute2RuntimeAttribute"):
        ENGINES["paddle-onednn"].load(artefact, threads=1)([np.ones([1, 3, 8, 8], "float32")])


@needs("paddleclas")
def test_paddleclas_runs_its_layers_from_plain_lists():
    """`paddleclas_layers.LayersOf`: a layer that is replaced goes on running."""
    from paddlelite_callbacks.errors import require

    backbone = require("paddleclas.ppcls.arch.backbone", needed_for="this test")
    with paddle.utils.unique_name.guard():
        network = backbone.ShuffleNetV2_x0_25(class_num=4)
    network.eval()
    x = paddle.rand([1, 3, 64, 64])
    expected = network(x).numpy()
    lists = [name for name, value in vars(network).items() if type(value) is list and isinstance(value[0], nn.Layer)]
    ((key, layer), *_) = [
        (key, layer)
        for key, layer in network.named_children()
        if any(layer is one for name in lists for one in vars(network)[name])
    ]
    setattr(network, key, _Zero())
    assert network._sub_layers[key] is not layer
    assert np.array_equal(network(x).numpy(), expected)


class _Zero(nn.Layer):
    def forward(self, x):
        return x * 0
