"""The commands of ``paddlelite-callbacks`` (``python -m paddlelite_callbacks``)."""
