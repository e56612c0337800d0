"""Text, messages, images and videos to what the model reads."""
