"""The command `study`: its YAML, its plan, and its processes with everything that can happen to them."""
