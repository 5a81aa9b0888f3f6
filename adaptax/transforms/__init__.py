"""What goes in a chain beside an algorithm: scaling, clipping, decay, averages."""
