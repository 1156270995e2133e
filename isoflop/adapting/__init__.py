"""A base model and examples in, the best adapted model that a budget buys out."""
