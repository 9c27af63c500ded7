"""How the files of one sample are named, in a folder as in a shard: X.jpg, X.cls, X.seg.png, X.depth.png."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
CLASS = ".cls"  # text: one class number
SEGMENTATION = ".seg.png"  # 8-bit: the class of each pixel
DEPTH = ".depth.png"  # 16-bit: millimetres
DEPTH_METRES = ".depth.npy"  # floating point: metres
