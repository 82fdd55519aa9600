"""`make bench`: what federation costs over a plain loop, and what its parts cost.

Prints tables; nothing passes or fails. Figures depend on the machine: read them as ratios.
"""

from __future__ import annotations

import argparse
import sys

from common.runtime.command import fix_allocator


def main() -> None:
    """Run the chosen benchmarks, or all of them."""
    from tests.bench import (
        audit,
        averaging,
        checking,
        coverage,
        deployment,
        families,
        federation,
        loading,
        machine,
        pages,
        private,
        registration,
        secure,
        sites,
        synthesis,
        wire,
    )

    tables = {
        "federation": federation.table,
        "loading": loading.table,
        "synthesis": synthesis.table,
        "averaging": averaging.table,
        "checking": checking.table,
        "coverage": coverage.table,
        "registration": registration.table,
        "pages": pages.table,
        "sites": sites.table,
        "wire": wire.table,
        "deployment": deployment.table,
        "families": families.table,
        "private": private.table,
        "secure": secure.table,
        "audit": audit.table,
    }
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("only", nargs="*", help="which tables")
    chosen = parser.parse_args().only or list(tables)
    print(machine.line())
    for name in chosen:
        print(f"\n## {name}\n\n{tables[name]()}", flush=True)


if __name__ == "__main__":
    fix_allocator([sys.executable, "-m", "tests.bench", *sys.argv[1:]])
    main()
