"""Models: packages, program runtime, cost estimates, exporter, zoo, `fedge model` commands."""
