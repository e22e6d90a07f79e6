"""From a source to a packed file: decode, check, write."""
