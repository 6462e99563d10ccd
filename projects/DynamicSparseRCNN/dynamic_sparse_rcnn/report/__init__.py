"""What a run did and what its detector finds, as one HTML file."""
