"""Pre-trained models at hand: raw pixels in, features out, preprocessing inside."""
