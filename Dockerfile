# One image for every role: the three programs, built on the machine by `cargo build`, on a Debian base
# that has swtpm. The base is a variable, so that a machine without a registry can bring its own.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
# A base that already has swtpm (the one that `./lab up` makes, say) needs no network here.
RUN command -v swtpm_setup >/dev/null || ( \
      apt-get update && \
      apt-get install -y --no-install-recommends swtpm swtpm-tools util-linux && \
      rm -rf /var/lib/apt/lists/* )
RUN useradd --system --uid 10001 --create-home lab && \
    mkdir -p /attestation /kps /lab /shared /clocks /hosts/host01 /hosts/host02 /volume && \
    chown lab: /attestation /kps /lab /shared /clocks /hosts /hosts/* /volume
ARG BINARIES=target/debug
COPY ${BINARIES}/attestation ${BINARIES}/kps ${BINARIES}/guarded-host-sim /usr/local/bin/
USER lab
