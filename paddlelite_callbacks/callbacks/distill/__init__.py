"""`DistillCallback` and its parts."""
