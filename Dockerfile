# The command line as an image: see "Images" in docs/serving.md.
#   docker build -t refloom .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" refloom run --help
FROM python:3.11-slim
# Extras of pyproject.toml: `app` has the review page; "local app" adds the embedded model's runtime.
ARG EXTRAS=app
# Weights lie where every user of the image finds them; other caches where every user may write.
ENV XDG_CACHE_HOME=/var/cache HF_HOME=/tmp/huggingface PYTHONDONTWRITEBYTECODE=1
RUN python -m pip install --no-cache-dir uv
COPY Makefile pyproject.toml docker/prepare.sh /opt/prepare/
COPY memory/__init__.py memory/weights.py memory/minilm.txt /opt/prepare/memory/
RUN sh /opt/prepare/prepare.sh $EXTRAS
COPY . /opt/refloom
RUN uv pip install --system --no-cache --no-deps -e /opt/refloom
WORKDIR /data
ENTRYPOINT ["refloom"]
CMD ["--help"]
