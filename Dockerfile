# The page and POST /analyze in a container. The first stage makes the wheel, the second one installs it alone.
#
#     docker build --tag ifan .
#     docker run --rm --network host ifan        # http://127.0.0.1:7860, for this machine only
#
# The packaged weights are for research use only.
FROM python:3.12 AS build
WORKDIR /source
COPY . .
RUN IFAN_NATIVE=require IFAN_CUDA=off pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/ifan-*.whl)[serve]" && rm -r /wheels && useradd --create-home ifan
USER ifan
WORKDIR /home/ifan
EXPOSE 7860
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/schema.json')"]
ENTRYPOINT ["ifan", "serve"]
