# The programs, built on the machine by `cargo build`, on a Debian base that is a variable, so that a machine without a
# registry can bring its own. `hgs` has the two services, `host` a guarded host with its software TPM, `lab` everything.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS hgs
RUN useradd --system --uid 10001 --user-group --create-home lab && \
    install -d -o lab -g lab /attestation /kps /clocks
ARG BINARIES=target/debug
COPY ${BINARIES}/attestation ${BINARIES}/kps /usr/local/bin/
LABEL guarded-fabric=lab
USER lab

FROM ${BASE_IMAGE} AS host
# A base that has swtpm already needs no network here.
RUN command -v swtpm_setup >/dev/null || ( \
      apt-get update && \
      apt-get install -y --no-install-recommends swtpm swtpm-tools util-linux && \
      rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc /usr/share/man /usr/share/locale )
RUN useradd --system --uid 10001 --user-group --create-home lab && \
    install -d -o lab -g lab /attestation /kps /database /front-door /lab /shared /clocks \
      /hosts /hosts/host01 /hosts/host02 /hosts/host11 /hosts/host12 /volumes /volumes/contoso /volumes/fabrikam
ARG BINARIES=target/debug
COPY ${BINARIES}/guarded-host-sim /usr/local/bin/
LABEL guarded-fabric=lab
USER lab

FROM host AS lab
ARG BINARIES=target/debug
COPY ${BINARIES}/attestation ${BINARIES}/kps /usr/local/bin/
