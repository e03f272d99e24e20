#!/bin/sh
# Runs PostgreSQL on /postgres, with a database and a role for each service. Their passwords are in /database, where
# `prepare` put them. A role reaches its own database only; the superuser only from inside the container.
set -eu
data=/postgres/data
if [ ! -e "$data/complete" ]; then
  rm -rf "$data"
  # Nobody finds it here before it is complete.
  mkdir -p /tmp/first
  initdb -D "$data" -U lab --encoding=UTF8 --locale=C --auth-local=peer --auth-host=reject >/dev/null
  for name in attestation kps; do
    echo "host $name $name samenet scram-sha-256" >>"$data/pg_hba.conf"
  done
  pg_ctl -D "$data" -w -o "-c listen_addresses='' -c unix_socket_directories=/tmp/first" start >/dev/null
  for name in attestation kps; do
    psql -h /tmp/first -q -v ON_ERROR_STOP=1 -d postgres <<SQL
\\set password \`cat /database/$name\`
CREATE ROLE $name LOGIN PASSWORD :'password';
CREATE DATABASE $name OWNER $name;
SQL
  done
  pg_ctl -D "$data" -w -m fast stop >/dev/null
  touch "$data/complete"
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
