"""Compute exact references of files, without optimisations and fast kernels.

They tell a wrong file from a wrong engine. ONNX Runtime with its graph optimisations off runs every node as ONNX
defines it, on any CPU; without ONNX Runtime the NumPy code in the package ``onnx`` does, slowly. A Paddle program is
run by ``paddle.jit.load``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import paddle

from paddlelite_callbacks.benchmark.engines import Engine, EngineError, OnnxRuntime, Predict
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import KIND_OF_CHECK
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["EXACT", "exact_engine"]

_NUMPY_OPSET = 21


class _PaddleJit:
    name, kind, package = "paddle.jit.load", "paddle", "paddlepaddle"

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """See `Engine.load`."""
        try:
            program = paddle.jit.load(str(artefact.path.with_suffix("")))
        except Exception as error:
            raise EngineError(reason(error)) from error
        program.eval()

        def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            with paddle.no_grad():
                outputs = program(*[paddle.to_tensor(item) for item in arrays])
            return [item.numpy() for item in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]

        return predict


class _OnnxInNumpy:
    name, kind, package = "onnx.reference", "onnx", "onnx"

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """See `Engine.load`."""
        onnx = require("onnx", needed_for="a reference for ONNX files")
        reference = require("onnx.reference", needed_for="a reference for ONNX files")
        converter = require("onnx.version_converter", needed_for="a reference for ONNX files")
        try:  # it supports only newer opsets of the quantizers
            newer = converter.convert_version(onnx.load(str(artefact.path)), _NUMPY_OPSET)
            evaluator = reference.ReferenceEvaluator(newer)
        except Exception as error:
            raise EngineError(reason(error)) from error
        names = list(evaluator.input_names)

        def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [np.asarray(item) for item in evaluator.run(None, dict(zip(names, arrays, strict=True)))]

        return predict


_ENGINES: tuple[Engine, ...] = (_PaddleJit(), OnnxRuntime(optimised=False), _OnnxInNumpy())
EXACT = (*(engine.name for engine in _ENGINES), *KIND_OF_CHECK)
"""Names in checks that cannot be chosen as engines: nothing is timed with them."""


def exact_engine(kind: str) -> Engine | None:
    """Return the reference engine for files of ``kind``; ``None`` if not installed.

    Args:
        kind: ``"paddle"`` or ``"onnx"``.
    """
    fitting = (one for one in _ENGINES if one.kind == kind)
    return next((one for one in fitting if kind == "paddle" or find_spec(one.package) is not None), None)
