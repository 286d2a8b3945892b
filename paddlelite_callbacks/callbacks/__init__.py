"""The callbacks; import them from ``paddlelite_callbacks``."""
