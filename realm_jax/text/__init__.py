"""Text in, piece ids and character offsets out."""
