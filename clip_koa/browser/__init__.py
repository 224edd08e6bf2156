"""A page that grades X-rays in the visitor's browser: static files, put together here, which send nothing anywhere."""
