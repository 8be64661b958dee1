"""Training workers: started with Ray Train, heard, watched, ended. No stage is here."""
