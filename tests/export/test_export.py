"""Exported files against the live network, in every engine; and that a failing export harms nothing."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import BenchOptions, ExportBenchCallback, ExportOptions, PACTQuantCallback
from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, ENGINES
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.convert import convert_for_export_
from paddlelite_callbacks.utils.atomic_files import staged_folder

SPEC = [InputSpec([None, 3, 8, 8], name="x")]


@pytest.fixture(scope="module")
def trained():
    paddle.seed(0)
    network = TinyNet(dropout=0.5)
    fit(hapi_model(network), epochs=2)
    return network


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export with a space and \u4e2d\u6587")
    program = export_paddle(trained, folder, input_spec=SPEC)
    return {"paddle": program, "onnx": export_onnx(program, folder / "model.onnx")}


def in_evaluation(network, *inputs):
    copied = copy_network(network)
    with paddle.no_grad():
        return copied(*[paddle.to_tensor(item) for item in inputs]).numpy()


@needs("paddle2onnx")
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("engine", DEFAULT_ENGINES)
def test_every_engine_computes_what_the_network_does(engine, batch, trained, files):
    x = Images(batch).images
    predict = ENGINES[engine].load(files[ENGINES[engine].kind], threads=1)
    (got,) = predict([x])
    np.testing.assert_allclose(got, in_evaluation(trained, x), atol=1e-5)


@needs("paddle2onnx")
@pytest.mark.parametrize("engine", DEFAULT_ENGINES)
def test_signals_are_handled_as_before(engine, files):
    """OpenVINO leaves a freed signal stack behind: the next signal would kill the process."""
    code = (
        "import os, pathlib, signal, sys, numpy\n"
        "from paddlelite_callbacks.benchmark.engines import ENGINES\n"
        "from paddlelite_callbacks.export.paddle_program import Artefact\n"
        "engine, kind, *paths = sys.argv[1:]\n"
        "paths = tuple(map(pathlib.Path, paths))\n"
        "predict = ENGINES[engine].load(Artefact(kind=kind, path=paths[0], files=paths), threads=1)\n"
        "predict([numpy.zeros([1, 3, 8, 8], 'float32')])\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "predict([numpy.zeros([1, 3, 8, 8], 'float32')])\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    file = files[ENGINES[engine].kind]
    command = [sys.executable, "-W", "ignore", "-c", code, engine, file.kind, *map(str, file.files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("handled")) == (0, 2), done.stderr


@needs("paddle2onnx")
def test_paddle_jit_load_computes_it_too(trained, files):
    loaded = paddle.jit.load(str(files["paddle"].path.with_suffix("")))
    loaded.eval()
    x = Images(4).images
    np.testing.assert_allclose(loaded(paddle.to_tensor(x)).numpy(), in_evaluation(trained, x), atol=1e-6)


def test_export_leaves_the_network_as_it_is(tmp_path):
    network = TinyNet()
    before, calls = weights_of(network), []
    network.conv1.register_forward_post_hook(lambda *_: calls.append(1))
    network.bn1.eval()
    export_paddle(network, tmp_path, input_spec=SPEC)
    assert equal_weights(before, weights_of(network))
    assert network.training
    assert not network.bn1.training
    assert not calls
    assert not isinstance(network.forward, paddle.jit.api.StaticFunction)
    network(paddle.zeros([1, 3, 8, 8]))
    assert calls == [1]


@needs("paddle2onnx")
def test_size_and_checksum_are_those_of_the_files(files):
    program = files["paddle"]
    assert program.size_mb == sum(file.stat().st_size for file in program.files) / 1e6
    assert [file.suffix for file in program.files] == [".json", ".pdiparams"]
    said = subprocess.run(["sha256sum", str(program.path)], capture_output=True, text=True, check=True).stdout
    assert said.lstrip("\\").startswith(program.sha256()["model.json"])


@needs("paddle2onnx")
def test_the_converter_installs_nothing(trained, tmp_path):
    """paddle2onnx's default optimiser runs pip at run time."""

    def installed():
        return {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}

    before = installed()
    export_onnx(export_paddle(trained, tmp_path, input_spec=SPEC), tmp_path / "m.onnx")
    assert installed() == before


@needs("paddle2onnx")
def test_a_quantised_network_is_exported_within_half_a_step(tmp_path):
    """A step of the output: were it quantised to 8 bits over the range it takes, the width of one of its 255 steps."""
    paddle.seed(2)
    model = hapi_model()
    fit(model, [PACTQuantCallback()], epochs=3)
    x = Images(16).images
    expected, shipped = in_evaluation(model.network, x), copy_network(model.network)
    step = (expected.max() - expected.min()) / 255
    convert_for_export_(shipped)
    program = export_paddle(shipped, tmp_path, input_spec=SPEC, precision="int8")
    made = {"paddle": program, "onnx": export_onnx(program, tmp_path / "model.onnx")}
    for engine in DEFAULT_ENGINES.values():
        (got,) = engine.load(made[engine.kind], threads=1)([x])
        assert np.abs(got - expected).max() <= step / 2, engine.name


def test_a_forward_that_cannot_be_exported(tmp_path):
    class Odd(TinyNet):
        def forward(self, x):
            return paddle.to_tensor(x.numpy())

    with pytest.raises(ExportError, match=r"the program of Odd uses none of its parameters. .*forward\(\)"):
        export_paddle(Odd(), tmp_path, input_spec=SPEC)

    class Never(TinyNet):
        def forward(self, x):
            if not paddle.in_dynamic_mode():
                raise NotImplementedError("eager only")
            return super().forward(x)

    with pytest.raises(ExportError, match=r"Never cannot be exported with inputs \[\[-1, 3, 8, 8\]\]: .*eager only"):
        export_paddle(Never(), tmp_path, input_spec=SPEC)


@needs("paddle2onnx")
def test_a_network_that_onnx_has_no_word_for(tmp_path):
    class Rare(TinyNet):
        def forward(self, x):
            return paddle.lgamma(super().forward(x).abs() + 1)

    program = export_paddle(Rare(), tmp_path, input_spec=SPEC)
    with pytest.raises(ExportError, match=r"paddle2onnx ended with -?\d+ on model\.json: .*unsupported operators"):
        export_onnx(program, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.pdiparams"]


def write(folder, text):
    (folder / "file").write_text(text)


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "net"
    with staged_folder(target) as stage:
        write(stage, "old")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), staged_folder(target) as stage:
        write(stage / "no such folder", "new")
    assert (target / "file").read_text() == "old"
    with staged_folder(target) as stage:
        write(stage, "new")
        assert (target / "file").read_text() == "old"
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_process_killed_while_it_writes_leaves_the_older_folder(tmp_path):
    target = tmp_path / "net"
    with staged_folder(target) as stage:
        write(stage, "old")
    code = (
        "import os, pathlib, signal, sys\n"
        "from paddlelite_callbacks.utils.atomic_files import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])) as stage:\n"
        "    (stage / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (target / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3  # what the dead left, and its lock
    with staged_folder(target) as stage:
        write(stage, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_process_killed_between_the_two_renames_is_healed(tmp_path):
    target = tmp_path / "net"
    (tmp_path / ".net.old").mkdir()
    write(tmp_path / ".net.old", "old")
    with pytest.raises(RuntimeError), staged_folder(target):
        raise RuntimeError
    assert (target / "file").read_text() == "old"


def test_a_failed_export_spoils_no_later_one(tmp_path):
    """What a trace that failed leaves in Paddle is found by a program at the same address."""
    from paddle.jit.dy2static.parameter_recorder import _global_parameter_recorder as recorder

    class Failing(TinyNet):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("on purpose")

    static = paddle.jit.to_static(Failing(), input_spec=SPEC, full_graph=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        paddle.jit.save(static, str(tmp_path / "alone"))
    left = len(recorder.params_dict)
    assert left > 0  # Paddle alone; should it be mended there, `without_failed_traces` can go
    with pytest.raises(ExportError, match="on purpose"):
        export_paddle(Failing(), tmp_path, input_spec=SPEC)
    assert recorder.params_dict == recorder.tensor2value == {}


def test_a_record_holds_the_figures_of_its_own_model(tmp_path):
    """hapi's logs are one dictionary for all models of the process."""

    class Other(paddle.metric.Accuracy):
        def name(self):
            return ["another model's"]

    other = hapi_model()
    other.prepare(other._optimizer, paddle.nn.CrossEntropyLoss(), Other())
    fit(other, [])
    export = ExportBenchCallback(
        tmp_path,
        engines=["paddle"],
        verbose=0,
        export=ExportOptions(report=False),
        benchmark=BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False),
    )
    fit(hapi_model(), [export])
    assert set(export.record.metrics) == {"loss", "acc"}
    assert all("another" not in name for row in export.record.history for name in row)
