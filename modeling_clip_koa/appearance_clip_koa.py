"""In which ways a knee X-ray was taken or stored otherwise than those of training, whatever it shows."""

# The ways there are, and what a reader is told of each.
WAYS = {
    "contrast": "contrast",
    "brightness": "brightness",
    "sharpness": "sharpness",
    "resolution": "resolution",
    "frame": "a frame around the knee",
    "metal": "metal",
}
