"""Average a student's weights as its own teacher."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.distill.load_teacher import copied, load_weights_
from paddlelite_callbacks.quant.switch import strip_quantizers_
from paddlelite_callbacks.utils.numbers import check_number
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["EMATeacher"]


class EMATeacher:
    """Exponential moving average of the student as its teacher.

    Mean teacher (Tarvainen 2017, arXiv:1703.01780). After each step of the optimizer: ``teacher = d teacher + (1 - d)
    student`` for every trainable parameter; everything else (batch-norm statistics) is copied. It runs in eval mode and
    starts as a copy of the student. Its layers are those of the network before PACT's conversion, even if that came
    first (a resumed run).

    Args:
        decay: Decay ``d``, in ``[0, 1)``.
        ramp: Whether to start with a smaller decay, ``min(decay, (1 + steps) / (10 + steps))``.

    Attributes:
        network: Averaged network; ``None`` before the first ``fit``. Kept for the next ``fit`` of the same student.
        steps: Number of updates.

    Raises:
        ValueError: ``decay`` is out of range.

    Example:
        >>> average = EMATeacher(0.99)
        >>> model.fit(train_data, callbacks=[DistillCallback(average)])  # doctest: +SKIP
        >>> average.network  # its weights are often the better ones  # doctest: +SKIP
    """

    def __init__(self, decay: float = 0.999, *, ramp: bool = True) -> None:
        words, remedy = "at least 0 and less than 1", "use 0.999; closer to 1 averages over more steps"
        check_number("decay", decay, lambda value: 0 <= value < 1, words, remedy=remedy)
        self.decay, self.ramp = float(decay), ramp
        self.network: Layer | None = None
        self.steps = 0
        self._pairs: list[tuple[Tensor, Tensor, bool]] = []

    __repr__ = constructor_repr

    def follow(self, student: Layer) -> Layer:
        """Start as a copy of ``student``, unless following it; return the average."""
        sources = student.state_dict()
        if self.network is None or not self._follows(list(sources.values())):
            fresh = strip_quantizers_(copied(student))
            self.network, self.steps = fresh, 0
            trained = {id(parameter) for parameter in student.parameters() if parameter.trainable}
            own = fresh.state_dict()
            self._pairs = [
                (tensor, own[name], id(tensor) in trained) for name, tensor in sources.items() if name in own
            ]
        return self.network

    def _follows(self, tensors: list[Tensor]) -> bool:
        known = {id(tensor) for tensor, _, _ in self._pairs}
        return bool(known) and known <= {id(tensor) for tensor in tensors}

    @paddle.no_grad()
    def update(self) -> None:
        """Update the average with the student's weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.ramp else self.decay
        self.steps += 1
        for source, target, trained in self._pairs:
            value = source.detach().astype(target.dtype)
            if trained:
                target.lerp_(value, 1 - decay)
            else:
                paddle.assign(value, target)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its number of steps, for a checkpoint."""
        return {} if self.network is None else {"network": self.network.state_dict(), "steps": self.steps}

    def set_state_dict(self, state: dict[str, Any], student: Layer) -> None:
        """Load a saved average of ``student``.

        Raises:
            ValueError: It does not fit.
        """
        if state:
            load_weights_(self.follow(student), state["network"], "The saved average")
            self.steps = int(state["steps"])
