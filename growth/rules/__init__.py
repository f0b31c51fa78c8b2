"""What can grow, how, and what keeps the function."""
