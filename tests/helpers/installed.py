"""What the packages of this Python allow: paddleclas ends with Python 3.11, paddle2onnx with 3.12."""

from __future__ import annotations

import importlib.util

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip, with the reason, where one of ``packages`` is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed on this Python: {', '.join(missing)}")
