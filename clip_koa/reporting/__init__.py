"""Pages and pictures of results, whoever made them."""
