"""Building blocks of k-means units: clustering, published centres, and words over units."""
