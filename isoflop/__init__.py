"""isoflop: a compute budget in, the best language model it buys out."""
