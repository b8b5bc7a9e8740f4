"""The claims by subject. Each module holds experiments, rules and figures of its
claims.

Every claim `S<n>` has a function `_examine_s<n>` that measures, a rule `_decide_s<n>`
that gives the verdict from the numbers alone, and an entry in `CLAIMS`.
"""
