"""Scripts that a person runs; each is a reading of the library."""
