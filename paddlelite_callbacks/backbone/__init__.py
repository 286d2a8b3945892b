"""Light backbones, and how to swap them in."""
