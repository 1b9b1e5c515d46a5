"""What of a model to tune, and whether: measured and tried, and nothing changed."""
