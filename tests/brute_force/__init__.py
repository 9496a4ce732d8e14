"""Slow, obvious twins of what pathex computes, and the small networks they are compared on."""
