# HAProxy, from its own image or installed on any Debian.
ARG HAPROXY_IMAGE=haproxy:2.8
FROM ${HAPROXY_IMAGE}
USER root
RUN command -v haproxy >/dev/null || ( \
      apt-get update && \
      apt-get install -y --no-install-recommends haproxy && \
      rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc /usr/share/man /usr/share/locale )
# An empty volume takes its owner from here.
RUN install -d -o 10001 -g 10001 /front-door
COPY haproxy.cfg unavailable.http /etc/front-door/
LABEL guarded-fabric=lab
USER 10001:10001
STOPSIGNAL SIGUSR1
ENTRYPOINT []
CMD ["haproxy", "-W", "-db", "-f", "/etc/front-door/haproxy.cfg"]
