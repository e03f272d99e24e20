# The verbs of `lab` that need a Docker engine; sourced by it.

# Docker, compose in either form, and the images; leaves the command in `compose`.
need_containers() {
  command -v docker >/dev/null 2>&1 || { say "a Docker engine is needed"; exit 2; }
  compose=(docker compose)
  docker compose version >/dev/null 2>&1 || compose=(docker-compose)
  command -v "${compose[0]}" >/dev/null 2>&1 || { say "docker compose is needed"; exit 2; }
  docker info >/dev/null 2>&1 || { say "the Docker engine does not answer: is it running, and may you use it?"; exit 2; }
}

# A base that cannot be had is replaced by one made here, under a name of its own.
base_or_stand_in() { # VARIABLE PUBLIC-IMAGE
  local variable=$1 public=$2
  [ -z "${!variable:-}" ] || return 0
  if docker image inspect "$public" >/dev/null 2>&1 || docker pull -q "$public" >/dev/null 2>&1; then
    printf -v "$variable" %s "$public"
  else
    stand_in
    printf -v "$variable" %s "$STAND_IN"
  fi
  export "${variable?}"
}

STAND_IN=guarded-fabric-base:debian-bookworm-debootstrap

# A bare Debian, made from its packages, for a machine that cannot pull one. The images install on it what they need.
stand_in() {
  docker image inspect "$STAND_IN" >/dev/null 2>&1 && return
  need debootstrap=debootstrap
  say "no base image can be pulled: making $STAND_IN with debootstrap"
  local root
  root=$(mktemp -d)
  debootstrap --variant=minbase bookworm "$root" >/dev/null
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,info,locale}
  tar -C "$root" -c . | docker import - "$STAND_IN" >/dev/null
  rm -rf "$root"
}

images() {
  need_build
  need strip=binutils
  local name profile=${LAB_PROFILE:-debug}
  say "building the programs"
  case "$profile" in
    debug) cargo build --quiet --workspace --bins ;;
    release) cargo build --quiet --workspace --bins --release ;;
    *) say "LAB_PROFILE is debug or release"; exit 2 ;;
  esac
  # Symbols are half of a program.
  mkdir -p target/image
  for name in attestation kps guarded-host-sim; do
    strip -o "target/image/$name.new" "${CARGO_TARGET_DIR:-target}/$profile/$name"
    # A program that has not changed keeps its layer of the image.
    cmp -s "target/image/$name.new" "target/image/$name" || mv "target/image/$name.new" "target/image/$name"
    rm -f "target/image/$name.new"
  done
  base_or_stand_in BASE_IMAGE debian:bookworm-slim
  base_or_stand_in HAPROXY_IMAGE haproxy:2.8
  base_or_stand_in POSTGRES_IMAGE postgres:16
  say "building the images"
  BINARIES=target/image "${compose[@]}" --profile scenarios build -q attestation host01 scenarios postgres front-door
  # Images of before, which have lost their names.
  docker image prune -f --filter label=guarded-fabric >/dev/null
  if ! docker run --rm --network none "guarded-fabric-lab:${LAB_TAG:-latest}" guarded-host-sim --version >/dev/null; then
    say "the programs do not run in the image: is this machine's C library newer than that of $BASE_IMAGE?"
    exit 1
  fi
}

# Everything up, hosts attested. Options go to compose: --profile cluster, say.
up() {
  need_containers
  images
  local begun=$SECONDS enrol status
  report_folder
  "${compose[@]}" "$@" up -d --no-build
  enrol=$("${compose[@]}" ps -a -q enrol)
  status=$(docker wait "$enrol")
  docker logs "$enrol"
  if [ "$status" != 0 ]; then
    say "the hosts are not enrolled; what runs stays up, to be looked at: ./lab down ends it"
    return 1
  fi
  local port=${LAB_PORTS:-10}
  say "up after $((SECONDS - begun)) s"
  cat <<TEXT
On this machine (in the fabrics' networks the HGS is http(s)://hgs.bastion.local):
  HGS              http://127.0.0.1:${port}080/Attestation and /KeyProtection; https on ${port}443
  administrators   https://127.0.0.1:${port}444/admin/v1 (attestation), ${port}445 (key protection); ./lab token
  replicas         http://127.0.0.1:${port}404/stats
  hosts' agents    http://127.0.0.1:${port}701 (host01), ${port}702 (host02), ${port}711 (host11), ${port}712 (host12)
Next: ./lab scenarios up, ./lab story, ./lab down
TEXT
}

# Where scenarios leave their report: their container writes as a user of its own.
report_folder() {
  mkdir -p target/scenarios
  chmod a+rwx target/scenarios
}

# Scenarios against what runs: the suite, or the files and folders that are named. Other arguments are options of `run`.
scenarios_up() {
  need_containers
  report_folder
  local argument before='' mounts=() arguments=() status=0
  for argument in "$@"; do
    case "$before:$argument" in
      --filter:*) arguments+=("$argument") ;;
      *.toml | */)
        mounts+=(-v "$(realpath "$argument"):/given/$(basename "$argument"):ro")
        arguments+=("/given/$(basename "$argument")")
        ;;
      *) arguments+=("$argument") ;;
    esac
    before=$argument
  done
  [ "${#mounts[@]}" -gt 0 ] || arguments+=(/scenarios)
  "${compose[@]}" run --rm "${mounts[@]}" scenarios "${arguments[@]}" || status=$?
  # Trouble of the lab's own.
  [ "$status" != 3 ] || logs_of_all
  [ "$status" = 2 ] || say "the report is in target/scenarios: pages/index.html, junit.xml, report.json"
  return "$status"
}

# The story of `demo`, told on what runs.
story() {
  need_containers
  local status=0
  "${compose[@]}" run --rm story "$@" || status=$?
  [ "$status" = 0 ] || logs_of_all
  return "$status"
}

logs_of_all() {
  "${compose[@]}" logs --tail=20 prepare postgres attestation kps front-door host01 host02 >&2
}

# Administrators' tokens, and the root certificates of their listeners.
token() {
  need_containers
  "${compose[@]}" run --rm --no-deps -T story bash -c 'cat /lab/fabric.json /lab/attestation-root.pem /lab/kps-root.pem'
}

down() {
  need_containers
  "${compose[@]}" --profile scenarios --profile cluster down --volumes --remove-orphans --timeout 5
}

# Drills on a cluster of its own, which may stand beside whatever is up. The report is in target/cluster-report.json.
cluster() {
  need_containers
  export COMPOSE_PROJECT_NAME=${CLUSTER_PROJECT:-guarded-fabric-cluster}
  export LAB_NET=${CLUSTER_NET:-10.212} LAB_PORTS=${CLUSTER_PORTS:-12}
  # Each host attests far more often here than a host does.
  export REQUESTS_PER_MINUTE_PER_KEY=600
  trap 'down >/dev/null 2>&1' EXIT
  up --profile cluster >/dev/null
  local status=0
  "${CARGO_TARGET_DIR:-target}/${LAB_PROFILE:-debug}/guarded-host-sim" cluster drill \
    --project "$COMPOSE_PROJECT_NAME" --json target/cluster-report.json "$@" || status=$?
  if [ "$status" != 0 ]; then
    "${compose[@]}" --profile cluster logs --no-color >target/cluster-logs.txt 2>&1
    say "the containers' logs are in target/cluster-logs.txt"
  fi
  return "$status"
}
