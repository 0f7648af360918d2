"""Mixed precision: a width for each layer's weights, chosen without data under a budget."""
