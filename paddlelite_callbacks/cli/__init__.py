"""The commands of ``python -m paddlelite_callbacks``."""
