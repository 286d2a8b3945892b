"""Networks of the guide's worked example; installed as ``paddlelite_callbacks.models``."""
