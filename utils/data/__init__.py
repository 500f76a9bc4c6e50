"""The training and test images: sets of torchvision, in memory; folders of pictures, prepared once and mapped."""
