"""Programs and models looked at without running them: cost, operators, file format."""
