"""PACT quantisation-aware training, usable in any Paddle loop."""
