"""From predictions and an assignment to weighted losses."""
