"""Static analysis of programs: file format, operators, cost."""
