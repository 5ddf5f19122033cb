"""Training on labelled images: recipe, dataset, train, evaluate."""
