"""Knowledge distillation: losses and objectives for any Paddle loop."""
