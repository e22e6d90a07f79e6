"""The packed file, full.h5 and subset.h5: its format, checks, writer, readers, and sets of files."""
