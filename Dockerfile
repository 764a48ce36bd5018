# Builds with Docker and with buildah 1.28. BASE needs Python >= 3.11 with venv and pip, and ca-certificates.
ARG BASE=docker.io/library/python:3.13-slim

FROM ${BASE} AS build
# hadolint ignore=DL3002
USER root
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY profiles profiles
COPY man man
COPY nimpull nimpull
COPY image/link_commands.py image/
# s3 is for mirrors (NIM_REPOSITORY_OVERRIDE=s3://…); EXTRAS= leaves it out
ARG EXTRAS=s3
RUN python3 -m venv --without-pip /opt/nimpull \
 && python3 -m pip --python /opt/nimpull/bin/python3 install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" \
 && /opt/nimpull/bin/python3 image/link_commands.py /opt/nimpull/commands
# botocore describes 400 services; S3 and those that give credentials for it are wanted
RUN find /opt/nimpull/lib -path '*/botocore/data/*' -prune -type d \
      ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +

# nimpull alone, without a manifest: also what goes on top of a NIM image (--build-arg BASE=…)
FROM ${BASE} AS runtime
USER root
COPY --from=build /opt/nimpull /opt/nimpull
# a cluster's own CAs are added by an init container that calls this; without it they would be lost in silence
RUN command -v update-ca-certificates >/dev/null
ENV PATH=/opt/nimpull/commands:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000:2000
WORKDIR /
CMD ["nimpull"]

FROM runtime
# Not in "runtime", which also goes on top of NIM images: this package has the name of one that those have.
COPY image/shim /opt/nimpull-shim
ENV PYTHONPATH=/opt/nimpull-shim
ARG MANIFEST=image/model_manifest.yaml
COPY --chmod=0444 ${MANIFEST} /opt/nim/etc/default/model_manifest.yaml
