"""Shared by draft methods: training contract, weight files, loading, rank statistics, trees."""
