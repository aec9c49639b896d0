"""K-means in PyTorch: k-means++ seeding, Lloyd passes in chunks, repair of empty clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.core.errors import ConfigError
from echox.core.progress import progress

CHUNK_ROWS = 16_384  # rows whose distances to all centroids are in memory at once


def fit_kmeans(
    points: Tensor,
    clusters: int,
    *,
    seed: int,
    passes: int = 10,
    seeding_rows: int = 16_384,
    sample_rows: int = 131_072,
) -> Tensor:
    """Cluster features by Euclidean distance.

    All passes but the last run on a sample, which settles the centroids; the last uses every row.

    Args:
        points: features [N, D] of a floating type, on any device.
        clusters: number of centroids K.
        seed: of the sampling and the seeding.
        passes: Lloyd passes.
        seeding_rows: rows that k-means++ chooses from.
        sample_rows: rows of the passes before the last.

    Returns:
        centroids [K, D] float32; each was the nearest of some row, or was moved to a crowded place.

    Raises:
        ConfigError: there are fewer rows than clusters.

    Source: Arthur and Vassilvitskii 2007, k-means++.
    """
    N, _ = points.shape
    if N < clusters:
        raise ConfigError(
            f"{clusters} clusters need at least as many frames, got {N}; give more audio or fewer "
            "clusters"
        )
    # On the CPU whatever the device, so that a seed draws the same rows everywhere.
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(N, generator=generator).to(points.device)
    centroids = _seed(points[order[: max(seeding_rows, clusters)]].float(), clusters, generator)
    sample = points[order[: max(sample_rows, clusters)]]
    for index in progress(range(passes), "clustering frames", unit="round"):
        is_last = index == passes - 1
        centroids = _lloyd_pass(points if is_last else sample, centroids, generator)
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Find the index of the nearest centroid by Euclidean distance.

    Args:
        points: [..., D] of a floating type.
        centroids: [K, D] float32.

    Returns:
        int64 [...].
    """
    rows = points.reshape(-1, points.shape[-1])
    # |p - c|^2 / 2 without its |p|^2 / 2, which is the same for all centroids.
    halves = centroids.square().sum(1) / 2
    indices = [(halves - chunk.float() @ centroids.T).argmin(1) for chunk in rows.split(CHUNK_ROWS)]
    if not indices:  # `cat` refuses an empty list
        return rows.new_zeros(points.shape[:-1], dtype=torch.int64)
    return torch.cat(indices).reshape(points.shape[:-1])


def _seed(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """K-means++: draw each centroid with probability proportional to its squared distance.

    The distance is that to the nearest centroid drawn so far: points [N, D] -> [K, D].
    """
    squares = points.square().sum(1)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = torch.full_like(squares, float("inf"))  # [N], squared
    while len(chosen) < clusters:
        last = points[chosen[-1]]
        # Rounding can make the squared distance of a row to itself negative.
        to_last = (squares - 2 * (points @ last) + last.square().sum()).clamp(min=0)
        distance = torch.minimum(distance, to_last)
        # With fewer distinct rows than clusters all distances reach 0, which `multinomial` refuses;
        # the small constant lets it draw a row again.
        chosen.append(int(torch.multinomial(distance.cpu() + 1e-12, 1, generator=generator)))
    return points[chosen].clone()


def _lloyd_pass(points: Tensor, centroids: Tensor, generator: torch.Generator) -> Tensor:
    """One Lloyd pass: the mean of the rows nearest to each centroid.

    An empty cluster is moved beside one of the largest, so that the next pass splits that one.
    """
    K, _ = centroids.shape
    sums, counts = torch.zeros_like(centroids), torch.zeros(K, device=centroids.device)
    for chunk in points.split(CHUNK_ROWS):
        labels = nearest(chunk, centroids)
        sums.index_add_(0, labels, chunk.float())
        counts += torch.bincount(labels, minlength=K)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        crowded = counts.argsort(descending=True)[: len(empty)]
        # About as far as the centroid moved; the second term keeps the copies apart if it did not.
        spread = (centroids[crowded] - means[crowded]).abs() + 1e-3 * means.std()
        noise = torch.randn(spread.shape, generator=generator).to(spread.device)
        means[empty[: len(crowded)]] = means[crowded] + spread * noise
    return means
