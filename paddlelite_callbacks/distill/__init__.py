"""Distillation: pure loss functions, usable in any Paddle loop."""
