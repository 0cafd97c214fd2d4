"""What is learned: parameters, model packages, programs, codecs."""
