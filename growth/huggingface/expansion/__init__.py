"""A checkpoint grows: planned, written tensor by tensor, verified, and described in a card."""
