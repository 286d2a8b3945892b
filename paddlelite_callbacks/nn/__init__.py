"""What is known of layers, once."""
