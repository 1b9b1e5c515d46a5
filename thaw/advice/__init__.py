"""What to fine-tune, and whether."""
