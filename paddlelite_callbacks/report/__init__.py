"""What a run gave: its record, the gate, and how both are shown."""
