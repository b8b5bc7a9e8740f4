"""The tasks, one file each. `registry.load_library` imports every file of this folder,
so a new one needs no entry elsewhere.
"""
