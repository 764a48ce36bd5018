"""Where a mirror is written that is no directory: buckets, through boto3's transfer manager."""
