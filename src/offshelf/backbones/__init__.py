"""Networks behind one door: names and folders in, frozen timm models with a card out, and a fast way to run them."""
