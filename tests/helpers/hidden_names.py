"""Train and export in a process of its own, with private names of Paddle hidden from the package.

``hidden_names.py MODE FOLDER``; MODE is ``nothing``, ``names`` (gone from their modules), ``modules`` (cannot be
imported) or ``features`` (also those without which a feature cannot work). Paddle itself goes on seeing its names, as
it would in a release that renamed them. Weights and what was checked are written into FOLDER.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import json
import pkgutil
import sys
import types
import warnings
from pathlib import Path

OURS = "paddlelite_callbacks"
WORKAROUNDS = {  # what goes on working without
    "paddle": {"_C_ops", "original_init", "new_init"},
    "paddle.base.core": {"create_or_get_global_tcp_store", "get_op_attrs_default_value"},
    "paddle.base.framework": {"NameStruct", "OpProtoHolder", "_dygraph_tracer", "_name_struct"},
    "paddle.base.proto.framework_pb2": {"AttrType", "ProgramDesc"},
    "paddle.io.dataloader.collate": {"default_collate_fn"},
    "paddle.io.dataloader.dataloader_iter": {
        "_DataLoaderIterBase",
        "_DataLoaderIterMultiProcess",
        "_DataLoaderIterSingleProcess",
        "_ResumeIteration",
    },
    "paddle.io.multiprocess_utils": {"_SIGCHLD_handler_set"},
    "paddle.jit.dy2static.convert_call_func": {"is_unsupported"},
    "paddle.jit.dy2static.origin_info": {"global_origin_info_map"},
    "paddle.jit.dy2static.parameter_recorder": {"_global_inplace_map", "_global_parameter_recorder"},
    "paddle.jit.dy2static.program_translator": {"_FUNCTION_CACHE", "ast_to_func"},
    "paddle.jit.dy2static.utils": {"DEL_TEMP_DIR", "get_temp_dir"},
    "paddle.nn.functional": {"common"},
    "paddle.nn.utils.spectral_norm_hook": {"SpectralNorm"},
    "paddle.nn.utils.weight_norm_hook": {"WeightNorm"},
}
FEATURES = {  # what a feature is made of; it then says so
    "paddle.hapi.callbacks": {"CallbackList"},
    "paddle.nn.quant.qat": {"QuantedConv2D", "QuantedLinear"},
    "paddle.quantization.config": {"SingleLayerConfig"},
}
PUBLIC = {"paddle", "paddle.nn.functional"}  # modules that stay; `paddle.base.core` stands for the binary
hidden: dict[str, set[str]] = {}


def asked_by_package() -> bool:
    """Return whether the package, not Paddle, asks."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "importlib"):
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).startswith(OURS)


class Hiding(types.ModuleType):
    """A module whose private names the package does not find."""

    def __getattribute__(self, name):
        if name in hidden.get(types.ModuleType.__getattribute__(self, "__name__"), ()) and asked_by_package():
            raise AttributeError(f"hidden: {name}")
        return super().__getattribute__(name)


def hide(table: dict[str, set[str]], *, modules: bool) -> None:
    """Hide names from the package, or whole modules."""
    hidden.update(table)
    for name in table:
        module = importlib.import_module(name)
        missing = {one for one in table[name] if not hasattr(module, one)}
        assert not missing, f"{name} has no {missing}: correct the list"
        module.__class__ = Hiding
    gone = set(table) - PUBLIC if modules else set()
    importing, by_name = builtins.__import__, importlib.import_module

    def statement(name, globals=None, locals=None, fromlist=(), level=0):
        wanted = {name, *(f"{name}.{one}" for one in fromlist or ())}
        names = {f"{module}.{one}" for module, several in table.items() for one in several}
        if wanted & (gone | names) and asked_by_package():
            raise ImportError(f"hidden: {name}")
        return importing(name, globals, locals, fromlist, level)

    def function(name, package=None):
        if name in gone and asked_by_package():
            raise ImportError(f"hidden: {name}")
        return by_name(name, package)

    builtins.__import__, importlib.import_module = statement, function


def import_everything() -> int:
    """Import every module of the package."""
    package = importlib.import_module(OURS)
    names = [item.name for item in pkgutil.walk_packages(package.__path__, f"{OURS}.")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old paths
        for name in names:
            if not name.endswith("__main__"):
                importlib.import_module(name)
    return len(names)


def swap() -> list[int]:
    """Put a small network where another was; return the shape of what it gives."""
    import paddle
    from toy import TinyNet

    from paddlelite_callbacks import BackboneSwap

    network = BackboneSwap(TinyNet(width=2))(TinyNet(), input_spec=[paddle.static.InputSpec([1, 3, 8, 8])])
    return list(network(paddle.ones([1, 3, 8, 8])).shape)


def message_of(work) -> str:
    try:
        work()
    except RuntimeError as error:
        return str(error)
    return "no error"


def main(mode: str, folder: Path) -> None:
    import numpy as np
    import paddle
    from toy import Images, TinyNet, fit, hapi_model, weights_of

    told: dict = {}
    if mode == "features":
        hide(WORKAROUNDS | FEATURES, modules=True)
    elif mode != "nothing":
        hide(WORKAROUNDS, modules=mode == "modules")
    told["modules"] = import_everything()

    from exporting import grouped  # imports the package, which must not have been before the names are hidden

    import paddlelite_callbacks as pc
    from paddlelite_callbacks.export.program_desc import read_program_desc
    from paddlelite_callbacks.quant import paddle_layers
    from paddlelite_callbacks.workarounds import data_loader, tracing

    parts = [data_loader._collate, data_loader._iterators, data_loader._processes]
    parts += [tracing._framework, tracing._origin_info, tracing._recorders, tracing._sources, tracing._translator]
    parts += [tracing._cache, tracing._calls]
    told["found"] = sum(part is not None for part in parts)
    told["swapped"] = swap()
    paddle.seed(3)
    teacher, network = TinyNet(width=8), TinyNet()
    if mode == "features":
        told["pact"] = message_of(lambda: pc.prepare_pact_(network, inputs=paddle.ones([1, 3, 8, 8])))
        told["quanted"] = message_of(lambda: paddle_layers.QuantedConv2D(network.conv1, None))
        told["layers"] = [type(layer).__name__ for layer in network.sublayers()]
        told["fit"] = message_of(lambda: fit(hapi_model(network), [pc.DistillCallback(teacher)]))
        (folder / "x.pdmodel").write_bytes(b"x")
        told["program"] = message_of(lambda: read_program_desc(folder / "x.pdmodel"))
        (folder / "told.json").write_text(json.dumps(told))
        return
    onnx = ["onnxruntime"] if all(map(importlib.util.find_spec, ("paddle2onnx", "onnx", "onnxruntime"))) else []
    quick = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
    export = pc.ExportBenchCallback(folder, **grouped(name="n", engines=["paddle", *onnx], **quick))
    callbacks = [pc.DistillCallback(teacher, loss="kl", features={"conv*": "conv*"}), pc.PACTQuantCallback(), export]
    fit(hapi_model(network), callbacks, epochs=2)
    told["checks"] = [[check.engine, check.precision, check.passed] for check in export.record.checks]
    told["notes"] = list(export.record.notes)
    pc.cache_teacher(teacher, Images(), folder / "cache", verbose=0)
    np.savez(folder / "weights.npz", **weights_of(network))
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
