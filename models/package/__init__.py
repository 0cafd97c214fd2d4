"""Model packages: spec, program, initial weights, and the versions a coordinator stores."""
