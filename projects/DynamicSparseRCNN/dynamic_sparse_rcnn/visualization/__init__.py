"""Pictures of images, stages and assignments."""
