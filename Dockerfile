# syntax=docker/dockerfile:1
# The native binary and the filters' module. Envoy is its own, stock image: see docker-compose.yml.

FROM rust:1-bookworm AS build
RUN rustup target add wasm32-wasip1
WORKDIR /src
COPY . .
# The caches are not part of the image, so what is wanted is copied out in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    scripts/build-wasm \
    && cargo build --locked --release -p parapet \
    && install -D target/release/parapet /out/parapet \
    && install -D -m 644 target/parapet.wasm /out/parapet.wasm

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/parapet /usr/local/bin/parapet
COPY --from=build /out/parapet.wasm /usr/local/lib/parapet/parapet.wasm
COPY envoy/envoy.yaml /etc/parapet/envoy.yaml
# The number of the user `envoy` in Envoy's image: both write into one data directory, which is private to it. A new
# volume mounted there starts with this directory's owner and rights.
RUN useradd --system --uid 101 --user-group --no-create-home parapet \
    && install -d -o parapet -g parapet -m 700 /var/lib/parapet
ENV PARAPET_CONFIG=/etc/parapet/envoy.yaml \
    PARAPET_DATA_DIR=/var/lib/parapet \
    PARAPET_WASM=/usr/local/lib/parapet/parapet.wasm
USER parapet
ENTRYPOINT ["parapet"]
CMD ["sidecar"]
