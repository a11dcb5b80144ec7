"""One file per kind of task: data -> batch -> scored positions -> metrics."""
