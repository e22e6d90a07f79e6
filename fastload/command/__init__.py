"""The command line: fastload's commands and what they print."""
