"""What units are made with: clusters of features, published centres, and words over units."""
