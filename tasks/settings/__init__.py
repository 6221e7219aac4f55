"""What users set: reading and checking of configs and options."""
