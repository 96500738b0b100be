"""What a cluster needs to know: profiles of clusters, the Job that runs a step, the few calls of the API it takes."""

from .api import Api, RealApi, Refused
from .manifest import Request, job_manifest
from .profile import Profile, Resources, StageProfile, load_profile

__all__ = [
    "Api",
    "Profile",
    "RealApi",
    "Refused",
    "Request",
    "Resources",
    "StageProfile",
    "job_manifest",
    "load_profile",
]
