"""What a cluster needs to know: profiles of clusters, the Job that runs a step, the few calls of the API it takes."""

from .api import Api, RealApi, Refused
from .lease import Lease
from .manifest import Request, driver_manifest, job_manifest
from .profile import Profile, Resources, StageProfile, load_profile

__all__ = [
    "Api",
    "Lease",
    "Profile",
    "RealApi",
    "Refused",
    "Request",
    "Resources",
    "StageProfile",
    "driver_manifest",
    "job_manifest",
    "load_profile",
]
