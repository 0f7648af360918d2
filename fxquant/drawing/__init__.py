"""The quantized graph as a picture: boxes, their places, and SVG."""
