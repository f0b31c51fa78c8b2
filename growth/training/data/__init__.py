"""Text and images, in batches."""
