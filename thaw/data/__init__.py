"""In: files to examples, nothing more."""
