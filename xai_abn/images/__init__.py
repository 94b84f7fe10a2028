"""Images: read files as pixels, and turn pixels into network inputs."""

from xai_abn.images.loading import LoadedImage, decode_image, find_images, from_array, load_example, load_image, to_rgb

__all__ = ["LoadedImage", "decode_image", "find_images", "from_array", "load_example", "load_image", "to_rgb"]
