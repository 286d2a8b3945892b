"""Files, locks, signals, random streams: nothing about networks."""
