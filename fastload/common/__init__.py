"""What every part may use, and what knows nothing of fastload's ideas: arguments, devices, memory, text, threads."""
