"""What captions the items of a job: a server, Ray or this process."""
