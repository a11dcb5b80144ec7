"""What `why` is made of: recipes and where they differ, the world they were followed in, what a recipe measures, noise, the walk."""
