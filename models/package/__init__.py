"""Model packages: spec, program, initial weights, and the versions that a coordinator stores."""
