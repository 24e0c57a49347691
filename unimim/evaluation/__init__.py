"""What a trained student is worth: protocols on frozen features."""
