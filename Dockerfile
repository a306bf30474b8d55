# lightly-curate in a container. Three folders are mounted: /home/input_dir and /home/shared_dir (read only is enough)
# and /home/output_dir. `docker run lightly-curate --help` lists the key=value words that follow the image name.
# It needs no rights and writes nowhere but there and below /tmp, so it also runs sealed (a test does so, without docker):
#   docker run --read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges ...

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -c "from configparser import ConfigParser as C; c = C(delimiters=['=']); c.read('settings.ini'); d = c['DEFAULT']; print(*(d[o + 'requirements'] for o in ('', 'timm_', 'tensorboard_')))" > /wheels/requirements.txt

FROM python:3.11-slim-bookworm AS venv
# The requirements are a layer of their own: it is large (torch with CUDA) and changes seldom.
COPY --from=wheel /wheels/requirements.txt /wheels/requirements.txt
RUN python -m venv --without-pip /opt/lightly-curate \
    && pip --python /opt/lightly-curate/bin/python install --no-cache-dir -r /wheels/requirements.txt
COPY --from=wheel /wheels/ /wheels/
RUN pip --python /opt/lightly-curate/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="lightly-curate" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=venv /opt/lightly-curate /opt/lightly-curate
# The output folder is open to all, so that `--user` with any number works also without a mount.
RUN useradd --uid 1000 --no-create-home --home-dir /tmp/curate curate \
    && install -d /home/input_dir /home/shared_dir \
    && install -d --mode=1777 /home/output_dir
# Caches and kernel files go below /tmp, which any user may write. USER is set for numbers without a name.
ENV PATH=/opt/lightly-curate/bin:$PATH \
    HOME=/tmp/curate \
    USER=curate \
    LOGNAME=curate \
    MPLCONFIGDIR=/tmp/curate/matplotlib \
    NUMBA_CACHE_DIR=/tmp/curate/numba \
    JUPYTER_PLATFORM_DIRS=0 \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home
ENTRYPOINT ["lightly-curate"]
