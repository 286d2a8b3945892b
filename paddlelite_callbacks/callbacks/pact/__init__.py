"""`PACTQuantCallback` and its diagnosis."""
