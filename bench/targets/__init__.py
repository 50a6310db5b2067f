"""Target models: how each is fetched, converted and loaded."""
