# One small image with one program, and nothing else: operator, worker and command line.
#   docker build -t tidemark .          (without Docker: make e2e-image)
FROM rust:1.95-bookworm AS build
WORKDIR /src
# The lock file first: dependencies are fetched again only when it changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs && cargo fetch --locked && rm -r src
COPY src src
# Static, glibc included (names are resolved by the `files` and `dns` that are in it); the flag is for the last step only.
RUN cargo rustc --release --locked --bin tidemark -- -C target-feature=+crt-static

FROM scratch
# Root certificates for AWS and other stores with public ones.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/tidemark /usr/local/bin/tidemark
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/tidemark"]
