"""Where the processes of a study run: `base.Engine`, and one file per engine."""
