"""Settings for all tests."""

from hypothesis import settings

# how long an example takes says nothing about what it shows
settings.register_profile("neurokube", deadline=None)
settings.load_profile("neurokube")
