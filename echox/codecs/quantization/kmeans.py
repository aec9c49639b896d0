"""k-means in torch: k-means++ seeding, Lloyd passes over mini-batches, repair of empty clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.progress import progress

CHUNK_ROWS = 16_384  # rows whose distances are in memory at once


def fit_kmeans(points: Tensor, clusters: int, *, seed: int, passes: int = 10, seeding_rows: int = 16_384, sample_rows: int = 131_072) -> Tensor:
    """Cluster features.

    All passes but the last run on a sample, which settles the centroids; the last one sees every row.

    Args:
        points: features [N, D] of a floating type, on any device.
        clusters: number of centroids K.
        seed: of the sampling and the seeding.
        passes: Lloyd passes.
        seeding_rows: rows k-means++ chooses from.
        sample_rows: rows of the passes before the last.
    Returns:
        centroids [K, D] float32; every one of them was the nearest of some row.
    Raises:
        ConfigError: there are fewer rows than clusters.
    Source: Arthur and Vassilvitskii 2007, k-means++.
    """
    N, _ = points.shape
    if N < clusters:
        raise ConfigError(f"{clusters} clusters need at least as many frames, got {N}; give more audio or fewer clusters")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(N, generator=generator).to(points.device)
    centroids = _seed(points[order[: max(seeding_rows, clusters)]].float(), clusters, generator)
    sample = points[order[: max(sample_rows, clusters)]]
    for number in progress(range(passes), "clustering frames", unit="round"):
        centroids = _lloyd(points if number == passes - 1 else sample, centroids, generator)
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid by Euclidean distance: points [..., D], centroids [K, D] -> int64 [...]."""
    rows = points.reshape(-1, points.shape[-1])
    halves = centroids.square().sum(1) / 2
    found = [(halves - chunk.float() @ centroids.T).argmin(1) for chunk in rows.split(CHUNK_ROWS)]
    return torch.cat(found).reshape(points.shape[:-1]) if found else rows.new_zeros(points.shape[:-1], dtype=torch.int64)


def _seed(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centroid is a row drawn with probability proportional to its squared distance from those so far."""
    squares = points.square().sum(1)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = torch.full_like(squares, float("inf"))
    while len(chosen) < clusters:
        last = points[chosen[-1]]
        distance = torch.minimum(distance, (squares - 2 * (points @ last) + last.square().sum()).clamp(min=0))
        # Drawn rows keep a tiny chance so that fewer distinct rows than clusters do not end in an error here.
        chosen.append(int(torch.multinomial(distance.cpu() + 1e-12, 1, generator=generator)))
    return points[chosen].clone()


def _lloyd(points: Tensor, centroids: Tensor, generator: torch.Generator) -> Tensor:
    """One pass: the mean of the rows nearest to each centroid; an empty cluster moves into the most crowded ones."""
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
        spread = (centroids[crowded] - means[crowded]).abs() + 1e-3 * means.std()
        noise = torch.randn(spread.shape, generator=generator).to(spread.device)
        means[empty[: len(crowded)]] = means[crowded] + spread * noise
    return means
