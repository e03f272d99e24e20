# PostgreSQL, from its own image (a Debian one) or installed on any Debian.
ARG POSTGRES_IMAGE=postgres:16
FROM ${POSTGRES_IMAGE}
USER root
# Debian's package would make a cluster of its own. The compiler for queries is as large as all the rest and needless
# here; without it PostgreSQL interprets them.
RUN command -v pg_ctl >/dev/null || ls -d /usr/lib/postgresql/*/bin >/dev/null 2>&1 || ( \
      mkdir -p /etc/postgresql-common && \
      echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf && \
      apt-get update && \
      apt-get install -y --no-install-recommends postgresql && \
      rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc /usr/share/man /usr/share/locale \
        /usr/lib/*/libLLVM* /usr/lib/*/libz3* /usr/lib/llvm* /usr/lib/postgresql/*/lib/llvmjit* /usr/lib/postgresql/*/lib/bitcode )
# initdb wants a user with a name; an empty volume takes its owner from here.
RUN ln -s "$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)" /usr/local/lib/postgresql-bin && \
    useradd --system --uid 10001 --user-group --home-dir /postgres lab && \
    install -d -o lab -g lab -m 700 /postgres && \
    install -d -o lab -g lab /database
ENV PATH=/usr/local/lib/postgresql-bin:$PATH
COPY postgres.sh /usr/local/bin/
LABEL guarded-fabric=lab
USER lab
STOPSIGNAL SIGINT
ENTRYPOINT []
CMD ["sh", "/usr/local/bin/postgres.sh"]
