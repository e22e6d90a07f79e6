"""For mypy: bench/ and kernels/ stand here, by links, where they are imported from and installed: inside fastload."""
