"""What is known of layers."""
