"""From files to a report: recipe, training, assimilation, evaluation."""
