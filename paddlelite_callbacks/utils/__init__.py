"""Parts that know nothing of networks."""
