"""Model families, one file each: `FAMILY:NAME?arguments` is built by the function that is registered as FAMILY."""
