"""Where a gallery's registry is kept."""
