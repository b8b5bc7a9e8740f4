"""Claims of five documents about large language models, put to the test.

The library began from five documents, which the claims name by their letters:

A: principles of large language models and scaling laws
B: an introduction to large language models
C: inference with large language models
D: the modules of a 7B model
E: unit scaling

`claims` states each claim with the rule that decides it, the experiment and the
figure. `reproduce` runs them and writes the report.
"""
