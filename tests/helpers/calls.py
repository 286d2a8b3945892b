"""Calls of all that is public, each scene in a process that imported nothing but Paddle and this package before."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
from exporting import grouped
from paddle.static import InputSpec
from process_state import Watch
from swap_nets import SPEC as SMALL
from swap_nets import Detector
from toy import Images, TinyNet, fit, hapi_model

import paddlelite_callbacks as pc
from paddlelite_callbacks.__main__ import main

SPEC = [InputSpec([None, 3, 8, 8], name="x")]
QUICK = {"warmup": 0, "repeats": 2, "verbose": 0}


def watched(scene):
    """Run ``scene(folder, watch)``; write what it called, and what was not as found, into ``folder/watched.json``.

    A scene prepares what it needs (networks draw their weights from the generator) and enters the watch for the calls.
    """

    @functools.wraps(scene)
    def run(folder, **arguments):
        folder = Path(folder)
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")
        os.chdir(folder)
        watch = Watch()
        scene(folder, watch, **arguments)
        (folder / "watched.json").write_text(json.dumps({"seen": watch.seen, "bad": watch.bad}))

    return run


def _fit(callbacks, watch, *, network=None, before=None, **options):
    model = hapi_model(network or TinyNet(width=8), optimizer="Adam")
    if before:
        before(model)
    with watch:
        fit(model, callbacks, **options)
    return model


def _larger(x):
    return paddle.nn.functional.interpolate(x, size=[16, 16])


@watched
def distil(folder, watch):
    from paddlelite_callbacks.distill.schedules import constant, cosine, linear, stop_at, warm_up

    teachers = [TinyNet(width=6), TinyNet(width=6)]
    names = ("kl", "jsdiv", "dml", "bce", "dkd", "dist", "mse", "l1", "smooth_l1")
    maps = ("fitnet", "attention", "cwd", "rkd")
    with watch:
        losses = {**{name: constant(0.1) for name in names}, "mse": stop_at(1)}
        features = [pc.FeatureTerm("conv1" if loss == "rkd" else "conv2", "conv2", loss=loss) for loss in maps]
        weight, task_weight = warm_up(1, cosine(1.0, 0.1)), linear(1.0, 0.5)
        callback = pc.DistillCallback(
            teachers[0], loss=losses, features=features, weight=weight, task_weight=task_weight
        )
    _fit([callback], watch, epochs=2, save_dir=str(folder / "ck"))
    _fit([pc.DistillCallback(teachers, combine="each", loss=[pc.OutputTerm("kl")])], watch)
    _fit([pc.DistillCallback(teachers, loss="kl")], watch)
    other = pc.DistillCallback(
        TinyNet(width=6), features={"conv*": "conv*"}, teacher_mode="train", teacher_inputs=_larger
    )
    _fit([other], watch)


@watched
def resume(folder, watch):
    model = hapi_model(TinyNet())
    fit(model, [pc.DistillCallback(TinyNet(), features={"conv*": "conv*"})], save_dir=str(folder))
    paddle.save(model.network.state_dict(), str(folder / "teacher.pdparams"))
    taken, given = {"loss": "kl", "features": {"conv*": "conv*"}}, (folder / "teacher.pdparams", TinyNet())
    with watch:
        callback = pc.DistillCallback(given, resume=folder / "final", **taken)
    _fit([callback], watch, network=TinyNet())


@watched
def peers(folder, watch):
    peer = TinyNet(width=8)
    with watch:
        mutual = pc.MutualPeer(peer, paddle.optimizer.Adam(1e-3, parameters=peer.parameters()))
        average = pc.EMATeacher(0.9)
    _fit([pc.DistillCallback(mutual, loss="dml")], watch)
    _fit([pc.DistillCallback(average)], watch)


@watched
def heatmaps(folder, watch):
    class Maps(Images):
        def __getitem__(self, index):
            return self.images[index], self.images[index][:2], np.ones([2, 1], "float32")

    def loss(out, target, weight):
        return ((out - target) ** 2).mean()

    network, teacher = (paddle.nn.Sequential(paddle.nn.Conv2D(3, 2, 3, padding=1)) for _ in range(2))
    labels = [InputSpec([None, 2, 8, 8], name="map"), InputSpec([None, 2, 1], name="weight")]
    model = paddle.Model(network, SPEC, labels)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=network.parameters()), loss)
    with watch:
        fit(model, [pc.DistillCallback(teacher, loss="heatmap_mse")], data=Maps(), evaluate=False)


@watched
def cache(folder, watch, *, num_workers):
    from paddlelite_callbacks.distill.identity import function_digest

    teacher, data = TinyNet(), Images()
    with watch:
        cached = pc.cache_teacher(teacher, data, folder / "c", batch_size=4, num_workers=num_workers, verbose=0)
    if not num_workers:
        _fit([pc.DistillCallback(cached, loss="kl")], watch, data=cached, evaluate=False)
        with watch:
            function_digest(_larger)


@watched
def pact(folder, watch):
    with watch:
        callback = pc.PACTQuantCallback(eval_data=Images(), metric_drop=0.0, start_epoch=1, freeze_bn_after=1)
        pc.PACTQuantCallback.from_config({"activation_preprocess_type": "PACT"})
    _fit([callback], watch, epochs=2)
    with watch:
        callback.find_skips(0.5)


@watched
def quantise(folder, watch):
    from paddlelite_callbacks.export.tolerance import rounding_noise
    from paddlelite_callbacks.nn.surgery import copy_network
    from paddlelite_callbacks.quant.bias_correction import correct_biases_, float_means
    from paddlelite_callbacks.quant.convert import convert_for_export_
    from paddlelite_callbacks.quant.prepare import quantized_layers
    from paddlelite_callbacks.quant.sensitivity import layer_sqnr, leave_one_out
    from paddlelite_callbacks.quant.switch import put_back, put_back_

    class Up(TinyNet):
        def __init__(self):
            super().__init__(width=3)
            self.up = paddle.nn.Conv2DTranspose(3, 3, 2, stride=2)

        def forward(self, x):
            return super().forward(self.up(x))

    batches = [[paddle.to_tensor(Images(4).images)]]
    networks = [Up(), TinyNet(), Up()]
    paired = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.ReLU(), paddle.nn.Conv2D(4, 2, 1))
    with watch:
        pc.prepare_pact_(networks[0], pc.PACTConfig(method="lsq", quantize_outputs=True))
        networks[0](*batches[0])
        layer_sqnr(networks[0], batches)
        leave_one_out(networks[0], lambda: 1.0)
        networks[0].eval()
        rounding_noise(quantized_layers(networks[0]).values(), lambda: [networks[0](*batches[0])])
        convert_for_export_(copy_network(networks[0]))
        pc.load_pact_(networks[2], networks[0].state_dict())
        pc.ptq_int8(networks[1], batches)
        pc.ptq_int8(networks[1], batches, calibration="kl", rounding="gptq")
        quantized = pc.ptq_int8(paired, batches, equalization=True)
        correct_biases_(quantized, batches, wanted=float_means(quantized, batches))
        with put_back(networks[0], ["fc"]):
            put_back_(networks[0], ["fc"])


@watched
def export(folder, watch):
    from paddlelite_callbacks.benchmark.onnx_cost import onnx_cost

    with watch:
        budget = pc.Budget(size_mb=20, latency_ms=0.0001, metric="acc", baseline=0.1)
        callback = pc.ExportBenchCallback(
            folder / "out",
            **grouped(
                name="n",
                fp16=True,
                which="best",
                budget=budget,
                gate="fail",
                sidecar={"labels": ["a"]},
                roofline=False,
                peak_memory=False,
                **QUICK,
            ),
        )
    with contextlib.suppress(pc.GateError):
        _fit([pc.PACTQuantCallback(), callback], watch)
    with watch:
        onnx_cost(folder / "out/n/model.onnx", [(1, 3, 8, 8)])
    assert {row.engine for row in callback.record.latencies if row.p50_ms} >= {"onnxruntime", "openvino", "paddle"}


@watched
def phone(folder, watch):
    """Files for phones, on the symmetric grid; tools that are missing say so."""
    from paddlelite_callbacks.benchmark.engines import native_file, takes_precision
    from paddlelite_callbacks.benchmark.int8_search import choose_float_layers, search_int8_layers
    from paddlelite_callbacks.benchmark.requantizing import on_symmetric_grid, requantizing_note
    from paddlelite_callbacks.benchmark.unfused_layers import float_layers_of
    from paddlelite_callbacks.export import edge_files
    from paddlelite_callbacks.export.int8_layers import layer_of
    from paddlelite_callbacks.export.lite import LiteOptions, checked_targets, find_opt
    from paddlelite_callbacks.export.nb_encoding import compact_nb, program_of_nb
    from paddlelite_callbacks.export.onnx_export import checked_opset
    from paddlelite_callbacks.export.paddle_program import export_lite_program, export_paddle
    from paddlelite_callbacks.export.program_desc import attribute_of, read_program_desc
    from paddlelite_callbacks.export.variants import on_lite_grid, write_lite
    from paddlelite_callbacks.maintainer_tools.arm_check import check_folder, folder_references
    from paddlelite_callbacks.maintainer_tools.arm_emulator import ArmEmulator, missing_for_arm
    from paddlelite_callbacks.maintainer_tools.phone_table import table

    batches = [[paddle.to_tensor(Images(4).images)]]
    networks = [TinyNet(), TinyNet()]
    for network in networks:
        network.eval()
    (folder / "files").mkdir()
    missing = contextlib.suppress(RuntimeError, ValueError, ImportError, pc.ExportError, pc.MissingDependencyError)
    with watch:
        quantized = pc.ptq_int8(networks[0], batches, activation_symmetric=True)
        on_lite_grid(quantized)
        pc.export_forms(quantized, folder / "files", input_spec=SPEC, pdmodel=True)
        other = pc.ptq_int8(networks[1], batches)
        with missing:
            search_int8_layers(networks[1], batches[0], repeats=1, trials=2)
        choose_float_layers(["conv"], lambda in_float: 1.0 - len(in_float))
        layer_of("conv.weight_int8")
        float_layers_of("onnx", "int8", folder / "files" / "model.int8.onnx")
        on_symmetric_grid(other)
        requantizing_note(other, [batches[0][0].numpy()])
        program = export_paddle(networks[1], folder / "program", input_spec=SPEC)
        lite = export_lite_program(program, folder / "lite")
        attribute_of(read_program_desc(lite.path).blocks[0].ops[0], "col")
        checked_targets(["arm"])
        checked_opset(17)
        with missing:
            find_opt(folder / "nothing")
        with missing:
            write_lite(program, folder, LiteOptions(opt=folder / "nothing"))
        edge_files.check_float_onnx(folder / "files" / "model.onnx", "MNN")
        with missing:
            edge_files.ncnn_input_shapes(folder / "files" / "model.onnx")
        with missing:
            edge_files.convert_to_mnn(folder / "files" / "model.onnx", folder / "model.mnn")
        with missing:
            edge_files.convert_to_ncnn(folder / "files" / "model.onnx", folder / "files")
        native_file("paddle", program)
        takes_precision("mnn", "int8")
        missing_for_arm()
        table([])
        compact_nb(b"")
        with missing:
            program_of_nb(b"")
        images = [batches[0][0].numpy()]
        folder_references(folder / "files", images)
        check_folder(folder / "files", ArmEmulator(folder / "nothing"), inputs=images)


@watched
def records(folder, watch):
    """What is done with a record and its files, function by function; a run with memory and roofline figures."""
    from paddlelite_callbacks.benchmark.load import load_files
    from paddlelite_callbacks.benchmark.options import BenchOptions
    from paddlelite_callbacks.benchmark.roofline import measure_roofline, roofline_share
    from paddlelite_callbacks.benchmark.timing import time_files
    from paddlelite_callbacks.export.compare import compare_outputs
    from paddlelite_callbacks.export.variants import references
    from paddlelite_callbacks.report.budget import budget_of, stored_budget
    from paddlelite_callbacks.report.chosen import front_of, point_of
    from paddlelite_callbacks.report.intervals import (
        interval_of,
        is_share_of_images,
        mean_half_width,
        mean_in_percent,
        tied,
        wilson,
    )
    from paddlelite_callbacks.report.ladder_table import ratio_words
    from paddlelite_callbacks.report.record import read_records
    from paddlelite_callbacks.report.retime import timed_together
    from paddlelite_callbacks.report.write import write_ladder

    callback = pc.ExportBenchCallback(
        folder / "out", **grouped(name="n", engines=["paddle"], roofline=False, report=False, **QUICK)
    )
    model, image = hapi_model(), [Images(1).images]
    _fit([callback], watch, network=model.network)
    quick = {"engines": ["paddle"], "roofline": False, **QUICK}
    later = pc.ExportBenchCallback(folder / "later", **grouped(eval_data=Images(8), forms=["pdmodel"], **quick))
    with watch:
        later.export(model, Images(8))
    rows, options = (
        [callback.record],
        BenchOptions(engines=["paddle"], warmup=0, repeats=2, peak_memory=False, roofline=False),
    )
    model.network.eval()
    with watch:
        rows = timed_together(rows, image, options, verbose=0)
        write_ladder(folder / "ladder", rows, metric="acc")
        expected = references(model.network, image)
        files = load_files([rows[0].artefacts[0].artefact()], image, expected, options)
        time_files(files, image, options, verbose=0)
        compare_outputs(image, image, engine="e", precision="fp32", atol=0.0, rtol=0.0)
        roofline_share(1000, 1, 1.0, measure_roofline(1))
        front_of([point_of(row, "acc") for row in rows], "acc")
        (record,) = read_records(folder / "later" / "runs.jsonl")
        interval_of(record, "acc")
        tied(record, record, "acc")
        wilson(0.5, 10)
        mean_half_width([0.5, 0.6])
        mean_in_percent([0.5, 0.6], digits=1)
        is_share_of_images("acc")
        budget_of(stored_budget(pc.Budget()))
        ratio_words(2.0, 1.0, "smaller", "larger", "as large")
        pc.compare_folders(folder / "later", folder / "later")


@watched
def commands(folder, watch):
    from paddlelite_callbacks.export.paddle_program import export_paddle
    from paddlelite_callbacks.export.separate_parameters import parameter_files

    network, inputs = TinyNet(), ["--input", "1x3x8x8"]
    np.save(folder / "x.npy", Images(32).images)
    quick = ["--warmup", "0", "--repeats", "2", "--no-memory", "--engines", "paddle"]
    with watch:
        export_paddle(network, folder / "program", input_spec=SPEC)
        assert main(["bench", str(folder / "program"), *inputs, *quick, "--record", str(folder / "runs")]) == 0
        assert main(["export", str(folder / "program"), str(folder / "onnx"), *inputs]) == 0
        assert main(["export", str(folder / "program"), str(folder / "pair"), *inputs, "--forms", "pdmodel"]) == 0
        with contextlib.suppress(ValueError):  # its parameters are in one file
            parameter_files(folder / "pair" / "model.pdmodel")
        given = ["quantize", str(folder / "program"), "--data", str(folder / "x.npy"), "--out", str(folder / "q")]
        given += ["--metric-drop", "0.000001", "--weight-bits", "2", "--no-memory", "--repeats", "2", "--engines"]
        assert main([*given, "onnxruntime"]) in (0, 3)
        assert main(["gate", str(folder / "runs"), "--size-mb", "20", "--latency-ms", "1000"]) == 0
        assert main(["report", str(folder / "runs")]) == 0
        assert main(["compare", str(folder / "runs"), str(folder / "runs"), "--json"]) == 0
        assert main(["doctor", "--quick"]) in (0, 1)
        assert main(["lighten", "--images", str(folder / "nothing")]) == 1
        assert main(["backbones", "MobileNetV3_small_x1_0", "--left-out"]) == 0
        assert main(["gate", str(folder / "nothing"), "--size-mb", "20"]) == 1
    assert "matplotlib.pyplot" not in sys.modules


@watched
def swap(folder, watch):
    heavy, x = paddle.vision.models.resnet18(num_classes=4), [InputSpec([None, 3, 64, 64])]
    paddle.save(paddle.vision.models.mobilenet_v3_small(num_classes=4).state_dict(), str(folder / "w.pdparams"))
    with watch:
        swap = pc.BackboneSwap(
            "mobilenet_v3_small", pretrained=folder / "w.pdparams", strict=False, freeze_norm=True, freeze_stages=1
        )
        network = swap(heavy, input_spec=x)
        swap.summary(repeats=1)
        pc.list_backbones("PPLCNet*")
        pc.AttentionFeatureLoss()
    assert network(paddle.rand([1, 3, 64, 64])).shape == [1, 4]


@watched
def swap_inside(folder, watch):
    from paddlelite_callbacks.backbone.registry import known_names

    detector = Detector()
    with watch:
        known_names()
        pc.BackboneSwap("PPLCNet_x0_25", at="backbone")(detector, input_spec=SMALL)


@watched
def small_parts(folder, watch):
    """Functions that no scene reaches."""
    from paddlelite_callbacks.backbone import features as taps
    from paddlelite_callbacks.backbone import registry as sources
    from paddlelite_callbacks.backbone import weights
    from paddlelite_callbacks.backbone.catalogue import render_table
    from paddlelite_callbacks.benchmark.roofline import roofline_share
    from paddlelite_callbacks.distill import resize
    from paddlelite_callbacks.errors import require
    from paddlelite_callbacks.export.fuse_onnx import exact_factor
    from paddlelite_callbacks.export.onnx_files import onnx_files
    from paddlelite_callbacks.export.onnx_graph import rename_tensors
    from paddlelite_callbacks.export.signature import plain_signature_
    from paddlelite_callbacks.export.validate import own_movement
    from paddlelite_callbacks.export.variants import said_of
    from paddlelite_callbacks.nn import nested as outputs
    from paddlelite_callbacks.utils.cpu import has_vnni
    from paddlelite_callbacks.utils.error_text import reason
    from paddlelite_callbacks.workarounds import paddleclas_layers as cures

    x, network, other = paddle.rand([1, 2, 4, 4]), TinyNet(), TinyNet()
    paddle.save({"x": x}, str(folder / "file"))
    onnx = require("onnx", needed_for="this")
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [info], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph), str(folder / "x.onnx"))
    with watch:
        render_table(pc.list_backbones("PPLCNet*"))
        cures.upsample_nearest(x, 2)
        taps.tap_spelling("blocks[2]")
        sources.weights_file("mobilenet_v3_small", "https://nowhere/file.pdparams")
        weights.fetch(f"file://{folder}/file", folder / "fetched")
        outputs.shapes_of({"a": x})
        outputs.told(ValueError("no"))
        reason(ValueError("no"))
        said_of(ValueError("no"))
        has_vnni("openvino")
        onnx_files(folder / "x.onnx")
        rename_tensors(graph, {"x": "z"})
        plain_signature_(other, 1)
        resize.differ_in_size([1, 2, 4, 4], [1, 2, 8, 8])
        resize.resized_like(x, [1, 2, 8, 8], "nearest")
        exact_factor(4, 8)
        own_movement(network, [np.zeros([1, 3, 8, 8], "float32")])
        roofline_share(1000, 1, 1.0, {"paddle": 1.0})
        with pc.compiled_depthwise():
            paddle.nn.functional.conv2d(x, paddle.ones([2, 1, 3, 3]), groups=2)
        pc.NonFiniteLossError("no", epoch=0, batch=0, terms=["task_loss"])
        pc.AdvancedPACTOptions()
        pc.BenchOptions()
        pc.ExportOptions()


@watched
def catalogue(folder, watch):
    from paddlelite_callbacks.maintainer_tools.measure_backbones import measure

    with watch:
        measure("mobilenet_v3_small", checks=["train"])
