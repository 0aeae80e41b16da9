"""Everything together: from a recipe to a trained run, its analyses, scores and report."""
