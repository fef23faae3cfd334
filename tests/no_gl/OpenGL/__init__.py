"""Stands in the way of the real PyOpenGL, as on a machine without the system's GL library."""

raise ImportError("Unable to load OpenGL library OSMesa")
