"""A run: its folder, its data, the teacher, the students, and what is measured from their
checkpoints."""
