//! Pixel formats: fbdev's bit fields, DRM's and V4L2's fourccs.
