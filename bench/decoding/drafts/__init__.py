"""What drafts share: weights and cards, strict loading, rank statistics, static trees."""
