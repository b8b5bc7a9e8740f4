"""The verb of the `scaling` command that explains the scaling laws: laws."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.cli.fit import Positional


@dataclass(frozen=True)
class LawsArgs:
    """List the scaling laws that can be fitted, or explain some: variables, parameters,
    source.

    Examples: scaling laws
              scaling laws chinchilla data_constrained
    """

    names: Positional[tuple[str, ...]] = ()
    """Laws to explain. Default: a list of all."""

    def __call__(self) -> int:
        from analysis.laws.catalog import explain_law, find_law, list_laws

        if not self.names:
            print(list_laws())
            return 0
        laws = [find_law(name) for name in self.names]
        print("\n\n".join(explain_law(law) for law in laws))
        return 0
