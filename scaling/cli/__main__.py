"""`python -m scaling.cli` is the `scaling` command."""

from scaling.cli.main import main

raise SystemExit(main())
