"""The page on which a reader of X-rays grades them: what it shows, and how it behaves."""
