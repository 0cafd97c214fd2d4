"""How updates become one aggregate; one file per aggregator."""
