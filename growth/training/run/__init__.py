"""A run: what it holds on to, how it starts and resumes, what it writes down, how it stops."""
