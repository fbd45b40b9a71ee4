# One small image with one program: operator, worker and command line.
#   docker build -t tidemark .
FROM rust:1.95-bookworm AS build
WORKDIR /src
# The lock file first: dependencies are fetched again only when it changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs && cargo fetch --locked && rm -r src
COPY src src
RUN cargo build --release --locked --bin tidemark

FROM debian:bookworm-slim
# Root certificates for AWS and other stores with public ones.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/tidemark /usr/local/bin/tidemark
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/tidemark"]
