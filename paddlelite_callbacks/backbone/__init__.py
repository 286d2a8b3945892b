"""Light backbones and how they take the place of heavy ones."""
