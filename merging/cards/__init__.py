"""What a merge says of itself: its model card with pictures, scores, licences and lineage, and what goes home with it."""
