"""Write trained networks in the formats of other tools."""
