"""Where the tests find the project and their own programs."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
