"""The kernel's loop driver, straight over an image file."""
