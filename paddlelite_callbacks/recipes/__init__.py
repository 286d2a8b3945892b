"""Complete workflows in one call: `lighten`."""
