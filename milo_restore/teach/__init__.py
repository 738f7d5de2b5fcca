"""Training MILO: distorted pairs, the teacher's maps and masks, the student, and how well the two agree."""
