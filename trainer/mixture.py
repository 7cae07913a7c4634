"""How weights of sources become whole numbers of samples. No torch and no numpy here: the command line counts too."""

from collections.abc import Sequence

BLOCK = 1024  # samples over which every source gets its exact share; weights resolve to 1 / BLOCK


def quotas(weights: Sequence[float]) -> list[int]:
    """Share of BLOCK samples per source, by largest remainder; ties go to the first source."""
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda s: (shares[s] - exact[s], s))
    for source in by_remainder[: BLOCK - sum(shares)]:
        shares[source] += 1
    return shares
