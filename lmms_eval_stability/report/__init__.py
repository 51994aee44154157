"""Writers of a comparison: terminal table, Markdown, JSON, CSV, figure, and the folder that holds them all."""
