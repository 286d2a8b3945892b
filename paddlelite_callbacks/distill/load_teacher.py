"""Load teachers: a layer, a ``paddle.Model``, a checkpoint or a saved program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer

from paddlelite_callbacks.nn.surgery import computes_weight, copy_network
from paddlelite_callbacks.quant.switch import strip_quantizers_
from paddlelite_callbacks.utils.parameters_file import check_not_truncated
from paddlelite_callbacks.utils.safe_load import check_no_code, read_saved

__all__ = ["TeacherLike", "check_files_exist", "digest_of", "load_weights_", "loaded_teacher"]

_ARCHITECTURE = "Give the architecture that it was saved from: teacher=(path, network)."

TeacherLike = Any  # Layer | paddle.Model | str | Path | tuple[str | Path, Layer | Callable[[], Layer]]


def loaded_teacher(teacher: TeacherLike, student: Layer | None = None) -> Layer | None:
    """Resolve the ``teacher`` argument to a network.

    Args:
        teacher: A ``Layer``; a ``paddle.Model``; ``(checkpoint, network)`` with a ``.pdparams`` file and the layer to
            load it into, or a function without arguments that builds it; a prefix of ``paddle.jit.save``
            (``prefix.json`` or ``prefix.pdmodel`` exists); or only a ``.pdparams`` file, which is loaded into a copy of
            the student (a network of the same architecture trained before).
        student: Student, for the last form; without it that form returns ``None``, to be called again.

    Raises:
        TypeError: ``teacher`` is none of these.
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint does not fit the network.
    """
    if isinstance(teacher, paddle.Model):
        teacher = teacher.network
    if isinstance(teacher, Layer):
        return teacher
    if isinstance(teacher, tuple) and len(teacher) == 2 and isinstance(teacher[0], (str, Path)):
        return _from_checkpoint(_checkpoint(teacher[0]), teacher[1])
    if not isinstance(teacher, (str, Path)):
        raise TypeError(
            f"teacher must be a paddle.nn.Layer or a paddle.Model, got {type(teacher).__name__}: give one, a pair "
            "(checkpoint.pdparams, network), or the path of a checkpoint or of a program of paddle.jit.save."
        )
    prefix = _program(teacher)
    if prefix is not None:
        return _from_program(prefix)
    path = _checkpoint(teacher)
    if student is None:
        return None
    state = _state_in(path)
    return _from_checkpoint(path, lambda: _like(student, state), state)


def check_files_exist(teacher: TeacherLike) -> None:
    """Check that the teacher's path exists.

    Args:
        teacher: Argument of `loaded_teacher`.

    Raises:
        FileNotFoundError: It does not; names the paths.
    """
    if isinstance(teacher, (str, Path)) and _program(teacher) is None:
        _checkpoint(teacher)


def copied(network: Layer) -> Layer:
    """Return a deep copy with only the hooks that compute weights."""
    return copy_network(network, keep_hook=computes_weight, keep_modes=True)


def load_weights_(network: Layer, state: dict[str, Any], source: str, *, cure: str = _ARCHITECTURE) -> None:
    """Load ``state`` into ``network``, completely or not at all.

    Args:
        network: Network; changed in place.
        state: Tensors or arrays by name.
        source: Origin of ``state``, for the error message.
        cure: Remedy at the end of that message.

    Raises:
        ValueError: Names or shapes differ; lists the first few.
    """
    own = network.state_dict()
    missing, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    wrong = {
        key: (list(state[key].shape), list(own[key].shape))
        for key in own
        if key in state and list(state[key].shape) != list(own[key].shape)
    }
    if missing or extra or wrong:
        raise ValueError(
            f"{source} does not fit {type(network).__name__}: missing {missing[:4]} ({len(missing)}), unknown "
            f"{extra[:4]} ({len(extra)}), other shapes (file, network) {dict(list(wrong.items())[:4])} ({len(wrong)}). "
            f"{cure}"
        )
    network.set_state_dict(state)


def _like(student: Layer, state: Iterable[str]) -> Layer:
    """Copy ``student`` for weights without quantizers."""
    network = copied(student)
    return network if any("_quanter." in key for key in state) else strip_quantizers_(network)


def digest_of(network: Layer) -> str:
    """Return a SHA-256 of a network's class, parameters and buffers."""
    digest = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in sorted(network.state_dict().items()):
        value = np.ascontiguousarray(tensor.astype("float32").numpy() if _is_half(tensor) else tensor.numpy())
        digest.update(f"{name}{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _is_half(tensor: Any) -> bool:
    return tensor.dtype == paddle.bfloat16


def _program(teacher: str | Path) -> Path | None:
    """Return the path prefix of a saved program, if ``teacher`` names one."""
    path = Path(teacher)
    prefix = path.with_suffix("") if path.suffix in (".json", ".pdmodel") else path
    exists = any(Path(f"{prefix}{ending}").is_file() for ending in (".json", ".pdmodel"))
    return prefix if exists and Path(f"{prefix}.pdiparams").is_file() else None


def _from_program(prefix: Path) -> Layer:
    check_not_truncated(f"{prefix}.pdiparams")
    check_no_code(Path(f"{prefix}.pdiparams.info"))  # a pickle beside old programs, which Paddle loads
    try:
        return paddle.jit.load(str(prefix))
    except Exception as error:
        raise ValueError(
            f"teacher={str(prefix)!r} cannot be loaded by paddle.jit.load ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:200]}): write it again with paddle.jit.save, or give the network "
            "itself, or (checkpoint, network)."
        ) from error


def _kinds(state: Any) -> str:
    if isinstance(state, dict):
        return f"a dictionary of {sorted({type(value).__name__ for value in state.values()})}"
    return f"a {type(state).__name__}"


def _checkpoint(teacher: str | Path) -> Path:
    for path in (Path(teacher), Path(f"{teacher}.pdparams")):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"teacher={str(teacher)!r}: there is neither a checkpoint {teacher}[.pdparams] nor a program "
        f"{teacher}.json (or .pdmodel) with {teacher}.pdiparams. Give the path of one, or the network itself."
    )


def _state_in(path: Path) -> dict[str, Any]:
    state = read_saved(path)
    if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
        raise ValueError(
            f"{path} must hold a state_dict, got {_kinds(state)}: save weights with "
            "paddle.save(network.state_dict(), path)."
        )
    return state


def _from_checkpoint(path: Path, network: Layer | Callable[[], Layer], state: dict[str, Any] | None = None) -> Layer:
    if not isinstance(network, Layer):
        if not callable(network):
            raise TypeError(
                f"The network in teacher=(checkpoint, network) must be a Layer or a function that builds one, got "
                f"{type(network).__name__}: write one, as lambda: resnet18(num_classes=10)."
            )
        with paddle.utils.unique_name.guard():  # some of paddleclas's networks have fixed parameter names
            network = network()
        if not isinstance(network, Layer):
            raise TypeError(
                f"The function in teacher=(checkpoint, function) must return a paddle.nn.Layer, got "
                f"{type(network).__name__}: return the built network."
            )
    load_weights_(network, _state_in(path) if state is None else state, str(path))
    return network
