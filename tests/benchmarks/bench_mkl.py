"""What ``MKL_DEBUG_CPU_TYPE=5`` gains on AMD: products of matrices and training steps, in processes in turns.

On Intel's processors the two are the same code, or the variable costs: the ratio says which.
"""

from __future__ import annotations

import json
from statistics import median

from by_hand import said_by_child

from paddlelite_callbacks.utils.cpu import MKL_VARIABLE, cpu_info

ROUNDS = 5
CHILD = """
import json, time, warnings
warnings.simplefilter("ignore")
import paddle
def seconds(call, repeats):
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return sorted(found)[repeats // 2]
a, b = paddle.rand([1024, 1024]), paddle.rand([1024, 1024])
network = paddle.vision.models.resnet18(num_classes=10)
optimizer = paddle.optimizer.Momentum(0.01, parameters=network.parameters())
images, labels = paddle.rand([16, 3, 32, 32]), paddle.randint(0, 10, [16])
def step():
    paddle.nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
    optimizer.clear_grad()
product = seconds(lambda: float(paddle.matmul(a, b)[0, 0]), 15)
print(json.dumps({"gflops": 2 * 1024**3 / product / 1e9, "step_ms": 1e3 * seconds(step, 9)}))
"""


def measured(**variables: str) -> dict[str, float]:
    """Run the child on one thread; without the variable unless it is given."""
    return json.loads(said_by_child(CHILD, **variables))


def test_mkl(report):
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "with the variable": []}
    for _ in range(ROUNDS):
        runs["plain"].append(measured())
        runs["with the variable"].append(measured(**{MKL_VARIABLE: "5"}))
    figures = {
        name: {key: median(run[key] for run in found) for key in ("gflops", "step_ms")} for name, found in runs.items()
    }
    pairs = list(zip(runs["plain"], runs["with the variable"], strict=True))
    ratios = {
        "gflops": median(with_it["gflops"] / plain["gflops"] for plain, with_it in pairs),
        "step": median(plain["step_ms"] / with_it["step_ms"] for plain, with_it in pairs),
    }
    report("mkl", {**figures, "faster by": ratios, "vendor": cpu_info().get("vendor_id", "")})
