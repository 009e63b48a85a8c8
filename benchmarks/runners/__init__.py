"""Where a bundle runs, one place a file."""
