"""Run, time and evaluate exported files on CPU engines."""
