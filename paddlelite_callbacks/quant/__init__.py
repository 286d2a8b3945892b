"""PACT quantisation-aware training: pure parts, usable in any Paddle loop."""
