"""The whole job, told once."""
