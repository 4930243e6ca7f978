"""Which loss should a draft be trained with? Losses by student, teacher, training context and
temperature."""
