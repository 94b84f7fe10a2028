"""Where an attribute is, in CelebA's aligned 178x218 images: left, top, right, bottom as shares of the image.

Drawn before anything was measured, on the mean faces of training people who have an attribute and who have not.
"""

MOUTH = ((0.27, 0.63, 0.73, 0.80),)
REGIONS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "Bangs": ((0.25, 0.24, 0.75, 0.44),),
    "Blond_Hair": ((0.15, 0.05, 0.85, 0.30), (0.05, 0.30, 0.27, 0.90), (0.73, 0.30, 0.95, 0.90)),
    "Wearing_Hat": ((0.15, 0.05, 0.85, 0.42),),
    "Eyeglasses": ((0.18, 0.42, 0.82, 0.60),),
    "Big_Nose": ((0.36, 0.46, 0.64, 0.68),),
    "Mouth_Slightly_Open": MOUTH,
    "Mustache": ((0.30, 0.60, 0.70, 0.73),),
    "Smiling": MOUTH,
    "Wearing_Lipstick": MOUTH,
    "Wearing_Necktie": ((0.25, 0.84, 0.75, 1.00),),
}
