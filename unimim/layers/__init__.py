"""Building blocks that students and heads share."""
