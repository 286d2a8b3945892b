"""Workarounds for defects of Paddle and paddleclas, one module each."""
