"""For mypy: bench/ stands here, by a link, where it is imported from and installed, which is inside fastload."""
