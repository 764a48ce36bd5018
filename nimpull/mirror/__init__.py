"""Where a mirror is written that is no directory: buckets, through boto3's transfer manager."""

from nimpull.mirror.bucket import S3Target
from nimpull.mirror.s3_client import Addressing, s3_client

__all__ = ["Addressing", "S3Target", "s3_client"]
