"""Export, engines, latency and checks: pure parts, usable without hapi."""
