"""A comparison of training losses by student, teacher, training context and temperature."""
