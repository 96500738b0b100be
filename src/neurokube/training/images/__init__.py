"""Training of networks that make images of images: sections between sections, or the look of another volume."""
