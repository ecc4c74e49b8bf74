#!/bin/sh
# Starts Redis with the users of users.acl; the password comes from the environment and is written
# down as its SHA-256 only. Arguments go to redis-server.
set -eu
: "${HELIOS_REDIS_PASSWORD:?is not set}"
here=$(dirname "$0")
acl=${TMPDIR:-/tmp}/users.acl
digest=$(printf %s "$HELIOS_REDIS_PASSWORD" | sha256sum | cut -d ' ' -f 1)
umask 077
sed -e '/^#/d' -e "s/#PASSWORD/#$digest/" "$here/users.acl" > "$acl"
unset HELIOS_REDIS_PASSWORD
exec redis-server "$here/redis.conf" --aclfile "$acl" "$@"
