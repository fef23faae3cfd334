"""Files of demonstrations, and what is trained on."""
