"""From a full set to embeddings: the autoencoder, encoders, embeddings that exist already, several ranks."""
