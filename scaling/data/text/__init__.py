"""Documents in files. `formats.py` is the table of formats, with a file for each."""
