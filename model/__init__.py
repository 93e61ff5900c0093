"""The autoencoder: features, network, training, artifact. Nothing here imports Beam."""
