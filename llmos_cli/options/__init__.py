"""What each section of a config may say: frozen pydantic classes, apart from the code they configure so that reading a config never imports torch."""
