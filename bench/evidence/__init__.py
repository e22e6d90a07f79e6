"""Evidence for what the feeds and the selections are worth, on several sets of data."""
