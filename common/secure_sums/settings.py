"""The `[secure_sums]` table of a study: whether updates are seen, or their sums alone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.settings import Table


class SecureSums(Table):
    """Masked sums of training reports (Bonawitz et al. 2017): no site's own numbers are seen."""

    on: bool = Field(
        False,
        description="Let each site add masks to its training report that cancel out in the sum "
        "over sites, so that the coordinator learns the sum and nothing of any one of them.",
    )
    threshold: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Fewest sites that are ever added up, and that must work together to take a "
        "mask off; more than half of those that train. 0: two thirds of them, rounded up.",
    )
    largest_update: Annotated[float, Field(gt=0, le=1e6)] = Field(
        8.0,
        description="Largest change of a parameter in a round: what fixed-point numbers hold. "
        "A site that would exceed it declines the round; 8 leaves steps of 4e-9. Statistics of "
        "layers may change by 2^24, in steps of 4e-12.",
    )

    def fewest(self, sites: int) -> int:
        """The threshold among so many training sites.

        >>> SecureSums().fewest(8), SecureSums().fewest(3), SecureSums(threshold=5).fewest(8)
        (6, 2, 5)
        """
        return self.threshold or -(-2 * sites // 3)

    def colluders(self, sites: int) -> int:
        """Most sites that may stand by a lying coordinator without any mask of the others falling.

        Each other site tells one secret of every site, so that 2 t > n + c keeps both from being
        put together.

        >>> SecureSums().colluders(8), SecureSums().colluders(3)
        (3, 0)
        """
        return max(0, 2 * self.fewest(sites) - sites - 1)

    def hidden_among(self, sites: int, colluders: int = 0) -> int:
        """Fewest other sites in any sum that a lying coordinator and `colluders` can get at.

        It may call different sites drop-outs to different sites: each of the `sites - colluders`
        others believes in `sites - threshold` of them, and a site is out for good once `threshold -
        colluders` others say so. Or it may have fewer sites agree to begin with.

        >>> SecureSums().hidden_among(8), SecureSums().hidden_among(8, 1)
        (6, 5)
        """
        fewest = self.fewest(sites)
        if fewest <= colluders:
            return 0
        return min(
            max(0, present - colluders - (present - colluders) * (present - fewest)
                // (fewest - colluders))
            for present in range(fewest, sites + 1)
        )  # fmt: skip
