"""Models: backbones, heads, stages."""
