"""What finished runs and searches say: read from their folders alone, in words and pictures. No torch."""
