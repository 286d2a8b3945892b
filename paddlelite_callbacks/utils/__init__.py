"""Files, locks, signals, random generators: nothing about networks."""
