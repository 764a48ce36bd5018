"""Signed URLs of S3: boto3 finds the credentials and signs, and sends nothing to the bucket itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from nimpull.core.names import Url, display
from nimpull.core.s3_failures import unreached, unusable
from nimpull.errors import AuthError, NimpullError, UsageError
from nimpull.sources.s3 import Sign

if TYPE_CHECKING:
    from boto3 import Session

_SIGNED_SECONDS: Final = 3600


def boto_signer(endpoint: str = "", region: str = "", ca_bundle: str = "") -> Sign:
    """Presigned URLs from the credentials that boto3 finds: AWS_*, web identity. Plain ones if it finds none.

    "" leaves endpoint and region to boto3. ``ca_bundle``: what boto3 trusts when it asks for credentials
    itself, unless AWS_CA_BUNDLE says otherwise. Raises UsageError without boto3, or for settings it refuses.
    """
    session = aws_session(region, ca_bundle)
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.handlers import set_list_objects_encoding_type_url

    try:
        signature = "s3v4" if session.get_credentials() else UNSIGNED
        client = session.client(
            "s3",
            endpoint_url=endpoint or None,
            # checksums are asked for where they are read; not every server knows the parameter
            config=Config(signature_version=signature, response_checksum_validation="when_required"),
        )
        # Names come as they are, not in url's encoding: servers disagree whether a plus in that is a blank.
        for operation in ("ListObjects", "ListObjectsV2"):
            client.meta.events.unregister(
                f"before-parameter-build.s3.{operation}", set_list_objects_encoding_type_url
            )
    except (BotoCoreError, ValueError) as error:
        raise unusable(error) from error

    def sign(operation: str, parameters: Mapping[str, str]) -> Url:
        try:
            return Url(client.generate_presigned_url(operation, Params=parameters, ExpiresIn=_SIGNED_SECONDS))
        except (BotoCoreError, ClientError, OSError) as error:
            raise _no_credential(error) from error

    return sign


def _no_credential(error: Exception) -> NimpullError:
    """boto3 asks for short-lived credentials itself (STS, the metadata service) when it has to sign."""
    hint = "Check the network policies, AWS_REGION and AWS_ENDPOINT_URL_STS."
    return unreached(error, "boto3 cannot ask for credentials", hint) or AuthError(
        f"boto3 has no credential for S3: {display(error, 300)}",
        hint="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_ROLE_ARN, the role's trust policy "
        "and the file that AWS_WEB_IDENTITY_TOKEN_FILE names.",
    )


def aws_session(region: str, ca_bundle: str) -> Session:
    """AWS_PROFILE=default without a configuration file is what boto3 takes anyway, yet refuses by name.

    Raises UsageError without boto3, or for settings it refuses.
    """
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise UsageError("buckets need boto3, which is not installed", hint="Install nimpull[s3].") from error
    from botocore.exceptions import BotoCoreError, ProfileNotFound
    from botocore.session import Session as CoreSession

    def made(core: CoreSession) -> Session:
        if ca_bundle and not core.get_config_variable("ca_bundle"):
            core.set_config_variable("ca_bundle", ca_bundle)
        return boto3.Session(botocore_session=core, region_name=region or None)

    try:
        return made(CoreSession())
    except (BotoCoreError, ValueError) as error:
        if not isinstance(error, ProfileNotFound) or error.kwargs["profile"] != "default":
            raise unusable(error) from error
    return made(CoreSession(session_vars={"profile": (None, [], None, None)}))
