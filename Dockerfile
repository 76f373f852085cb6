# An image of realm_jax for clusters. What it is for says EXTRAS: cuda, tpu, or nothing for the CPU, each with gcs or s3 where
# runs lie on an object store.
#
#     docker build --build-arg EXTRAS=tpu,gcs --tag REGISTRY/realm-jax:tpu .
FROM python:3.12-slim

ARG EXTRAS=
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /realm_jax

# The libraries first: this layer stays when only the code has changed. setup.py reads the version and the folders of gin.
COPY setup.py pyproject.toml ./
COPY constraints constraints
COPY gin gin
COPY realm_jax/__init__.py realm_jax/__init__.py
RUN python -m pip install --constraint constraints/py312.txt ".${EXTRAS:+[${EXTRAS}]}" && \
    python -m pip uninstall --yes realm_jax

COPY . .
RUN python -m pip install --no-deps --editable . && \
    useradd --create-home --uid 1000 realm && \
    install --directory --owner=realm logs

# By number, so that Kubernetes sees that it is not root.
USER 1000
ENTRYPOINT ["python"]
CMD ["launch/local.py", "--help"]
