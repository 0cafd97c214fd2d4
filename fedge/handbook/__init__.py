"""Pages and examples that come with the package: `fedge docs` and `fedge example`."""
