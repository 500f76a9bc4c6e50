"""Training and test images.

Reading the data sets (datasets), images and their classes (images), shuffled batches (batches); folders of image files:
their contents (folder), one file (image_file), and a whole folder prepared once (prepared).
"""
