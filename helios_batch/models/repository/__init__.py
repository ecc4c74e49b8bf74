"""The model repository: what models there are, and what was measured of them, where and how."""
