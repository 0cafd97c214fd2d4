"""Pictures of experiments and runs, drawn with matplotlib (extra `[plot]`)."""
