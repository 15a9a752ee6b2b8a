# The gateway before OpenAI-compatible servers; no model runs in this image.
#
#   docker build -t optscale .
#   docker run -p 8100:8100 optscale                     # a recorded pool in the models' place
#   docker run -p 8100:8100 -v ./mine.yaml:/serve.yaml:ro optscale --config /serve.yaml
FROM python:3.12-slim
# Built in the image, and nothing of it but the wheel's files stays there.
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir -c /src/constraints.txt "/src[serve]"
RUN useradd --create-home optscale
USER optscale
WORKDIR /home/optscale
EXPOSE 8100
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8100/readyz')"]
ENTRYPOINT ["optscale", "serve", "--host", "0.0.0.0"]
CMD ["--config", "recorded"]
