"""Networks that enlarge pictures: Real-ESRGAN and Stable Diffusion's upscaler."""
