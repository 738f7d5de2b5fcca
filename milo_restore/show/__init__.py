"""Drawing: comparison grids, heat maps, distortion levels."""
