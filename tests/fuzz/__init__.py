"""Random and crafted capture files, and what was found with them."""
