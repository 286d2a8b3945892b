"""Find non-finite losses, gradients and statistics, and undo the step."""
