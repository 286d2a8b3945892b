"""Records of runs, the gate that judges them, and their reports."""
