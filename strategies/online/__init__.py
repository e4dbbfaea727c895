"""Methods that replay a few exemplars with each batch: they learn streams, and tasks as well."""
