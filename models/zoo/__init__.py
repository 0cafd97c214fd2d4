"""Small models, one a file, named by task."""
