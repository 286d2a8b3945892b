"""Layers: kinds, copies, surgery, hooks, cost, nested outputs."""
