"""Run converted ONNX files on phone engines (MNN and ncnn) on the CPU."""

from __future__ import annotations

import importlib.metadata
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlelite_callbacks.benchmark.engine import EngineError, Predict
from paddlelite_callbacks.benchmark.engine_child import crash_of
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.edge_files import convert_to_mnn, convert_to_ncnn
from paddlelite_callbacks.utils.checksum import sha256_of

if TYPE_CHECKING:
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["ConvertingEngine", "Mnn", "Ncnn"]

_KEPT = 8  # most converted files at a time; the oldest is deleted


class ConvertingEngine(ABC):
    """Engine that first converts an ONNX file to its own format.

    It is used only if named in the options. Converted files are kept until the process ends. Each is first run in a
    child process, as some networks crash these engines.

    Attributes:
        name: Name in options and reports.
        kind: Kind of the artefacts that it converts.
        package: Package whose version is recorded.
        precisions: Precisions of the files that it can convert; quantised files are converted wrongly.
    """

    name: str
    package: str
    kind, precisions = "onnx", ("fp32", "fp16")
    _suffix: str
    _packages: tuple[tuple[str, str], ...]

    def __init__(self) -> None:
        self._converted: dict[str, tuple[tempfile.TemporaryDirectory, Artefact]] = {}

    @abstractmethod
    def _convert(self, source: Path, folder: Path) -> Artefact: ...

    @abstractmethod
    def _open(self, artefact: Artefact, threads: int) -> Predict: ...

    def missing(self) -> str | None:
        """Return what is not installed, with the remedy; ``None`` if nothing is missing."""
        for package, command in self._packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} not installed: pip install {command}"
        return None

    def native(self, artefact: Artefact) -> Artefact:
        """Return an ONNX file in the engine's own format, converted once per process.

        Args:
            artefact: ONNX file, or a file in the engine's own format, which is returned unchanged.

        Raises:
            ExportError: The file cannot be converted.
            MissingDependencyError: The converter is not installed.
        """
        if artefact.path.name.endswith(self._suffix):
            return artefact
        key = sha256_of(artefact.path)
        if key not in self._converted:
            folder = tempfile.TemporaryDirectory(prefix=f"paddlelite_{self.name}_")
            made = self._convert(artefact.path, Path(folder.name))
            while len(self._converted) >= _KEPT:
                self._converted.pop(next(iter(self._converted)))[0].cleanup()
            self._converted[key] = folder, made
        return self._converted[key][1]

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """Return a function that runs the file, see `Engine.load`.

        Its first call runs a converted file in a child process first, as it may crash.

        Args:
            artefact: ONNX file, or a result of `native`.
            threads: Number of CPU threads.

        Raises:
            EngineError: The file cannot be converted or loaded.
            MissingDependencyError: Engine or converter is not installed.
        """
        require(self.package, needed_for=f"the engine {self.name}")
        try:
            native = self.native(artefact)
        except ImportError:
            raise
        except Exception as error:
            raise EngineError(str(error)) from error
        if native is artefact:
            return self._open(native, threads)
        loaded: list[Predict] = []

        def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            if not loaded:
                if (why := crash_of(self.name, native, arrays, name=artefact.path.name)) is not None:
                    raise EngineError(why)
                loaded.append(self._open(native, threads))
            return loaded[0](arrays)

        return predict


class Mnn(ConvertingEngine):
    """MNN on the CPU, in fp32."""

    name, package, _suffix = "mnn", "MNN", ".mnn"
    _packages = (("MNN", "'paddlelite_callbacks[edge]'"),)

    def _convert(self, source: Path, folder: Path) -> Artefact:
        return convert_to_mnn(source, folder / "model.mnn")

    def _open(self, artefact: Artefact, threads: int) -> Predict:
        nn, expr = require("MNN.nn", needed_for="the engine mnn"), require("MNN.expr", needed_for="the engine mnn")
        runtime = nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
        try:
            network = nn.load_module_from_file(str(artefact.path), [], [], runtime_manager=runtime)
        except Exception as error:
            raise EngineError(f"MNN cannot load {artefact.path.name}: {error}") from error
        count = len(network.get_info()["outputNames"])
        types = {"f": (np.float32, expr.float), "i": (np.int32, expr.int), "u": (np.uint8, expr.uint8)}
        types["b"] = types["i"]

        def given(array: np.ndarray) -> object:
            plain, known = types[array.dtype.kind]
            return expr.const(np.ascontiguousarray(array, dtype=plain), list(array.shape), expr.NCHW, known)

        def predict(arrays: Sequence[np.ndarray], runtime: object = runtime) -> list[np.ndarray]:
            outputs = network.forward([given(array) for array in arrays])
            if len(outputs) != count:  # MNN has printed the reason
                raise EngineError(f"MNN could not compute {artefact.path.name} with inputs {[a.shape for a in arrays]}")
            return [np.array(expr.convert(item, expr.NCHW).read()) for item in outputs]

        return predict


class Ncnn(ConvertingEngine):
    """ncnn on the CPU, in fp32; images are run one by one, as ncnn has no batches."""

    name, package, _suffix = "ncnn", "ncnn", ".ncnn.param"
    _packages = (
        ("ncnn", "'paddlelite_callbacks[edge]'"),
        ("pnnx", "--no-deps pnnx==20261020 (its converter; it names PyTorch, which ONNX files do not need)"),
    )

    def _convert(self, source: Path, folder: Path) -> Artefact:
        return convert_to_ncnn(source, folder)

    def _open(self, artefact: Artefact, threads: int) -> Predict:
        ncnn = require("ncnn", needed_for="the engine ncnn")
        network = ncnn.Net()
        network.opt.num_threads = threads
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(network.opt, option, False)
        param, weights = artefact.files
        if network.load_param(str(param)) or network.load_model(str(weights)):
            raise EngineError(f"ncnn cannot load {param.name}: its converter wrote layers that this ncnn does not have")
        # pnnx numbers them in the order of the ONNX file; ncnn lists them in another order
        inputs = [f"in{i}" for i in range(len(network.input_names()))]
        outputs = [f"out{i}" for i in range(len(network.output_names()))]

        def one(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
            with network.create_extractor() as extractor:
                for name, row in zip(inputs, rows, strict=True):
                    # Copied: in-place layers crash on memory that ncnn did not allocate.
                    extractor.input(name, ncnn.Mat(np.ascontiguousarray(row)).clone())
                found = [extractor.extract(name) for name in outputs]
                if any(code for code, _ in found):
                    raise EngineError(f"ncnn could not compute {outputs}: it gave {[code for code, _ in found]}")
                return [np.array(item) for _, item in found]

        def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            rows = [one([array[i] for array in arrays]) for i in range(len(arrays[0]))]
            return [np.stack(items) for items in zip(*rows, strict=True)]

        return predict
