"""The documents' claims as experiments: what each says, the rule that decides, what was
found.
"""
