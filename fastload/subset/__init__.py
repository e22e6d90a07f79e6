"""The steps of build-subset, in order, and what they keep and report."""
