#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# packages.sh NFPM EXPORTER PROBE DIRECTORY: packs both binaries as deb and rpm, for the architecture of
# go env GOARCH. The packages are reproducible: they depend only on the commit and the binaries. The
# maintainer is the author of the commit, unless DEBFULLNAME and DEBEMAIL say otherwise.
set -euo pipefail

if (($# != 4)); then
	echo "packages.sh: pass the path of nfpm, the exporter, the probe and an output directory" >&2
	exit 1
fi
nfpm=$(realpath "$1")
EXPORTER=$(realpath "$2")
PROBE=$(realpath "$3")
mkdir -p "$4"
directory=$(realpath "$4")

cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=$(<VERSION)
ARCH=$("${GO:-go}" env GOARCH)
if ! SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null)}; then
	SOURCE_DATE_EPOCH=$(stat -c %Y VERSION) # a source tarball without git
fi
name=${DEBFULLNAME:-$(git log -1 --format=%an 2>/dev/null || true)}
email=${DEBEMAIL:-$(git log -1 --format=%ae 2>/dev/null || true)}
if [[ -z $name || -z $email ]]; then
	echo "packages.sh: the maintainer is not known: set DEBFULLNAME and DEBEMAIL" >&2
	exit 1
fi
MAINTAINER="$name <$email>"
GENERATED=$(mktemp -d)
trap 'rm -rf "$GENERATED"' EXIT
export ARCH EXPORTER PROBE GENERATED MAINTAINER SOURCE_DATE_EPOCH VERSION

# The man pages and the completions are those of the flags. A binary may be of another architecture, so
# that it cannot be asked. With the flags of .promu.yml, Go links again what make build has compiled.
prometheus=github.com/prometheus/common/version
date=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y%m%d-%H:%M:%S)
for command in xdp_audit_exporter:. xdp_audit_probe:./cmd/xdp_audit_probe; do
	name=${command%%:*}
	GOOS='' GOARCH='' CGO_ENABLED=0 "${GO:-go}" build -trimpath -tags netgo,osusergo -o "$GENERATED/host" \
		-ldflags "-X $prometheus.Version=$VERSION -X $prometheus.BuildDate=$date" "${command#*:}"
	"$GENERATED/host" --help-man | gzip -9n >"$GENERATED/$name.1.gz"
	"$GENERATED/host" --completion-script-bash >"$GENERATED/$name.bash"
	"$GENERATED/host" --completion-script-zsh >"$GENERATED/_$name"
	# Without this line, zsh completes nothing when it loads the file at the first use.
	# shellcheck disable=SC2016 # zsh expands it
	printf 'if [[ $funcstack[1] == _%s ]]; then _%s "$@"; fi\n' "$name" "$name" >>"$GENERATED/_$name"
done

gzip -9n <CHANGELOG.md >"$GENERATED/changelog.gz"
gzip -9n >"$GENERATED/changelog.Debian.gz" <<-END
	xdp-audit-exporter ($VERSION-1) unstable; urgency=medium

	  * Package version $VERSION. changelog.gz has the changes.

	 -- $MAINTAINER  $(LC_ALL=C date --utc --date="@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S +0000')
END

# Debian 12 keeps units in /lib/systemd. dpkg does not treat that path as /usr/lib/systemd.
export UNITS=/lib/systemd/system ZSH=/usr/share/zsh/vendor-completions
"$nfpm" package --config deploy/packages/nfpm.yaml --packager deb --target "$directory/"
export UNITS=/usr/lib/systemd/system ZSH=/usr/share/zsh/site-functions
"$nfpm" package --config deploy/packages/nfpm.yaml --packager rpm --target "$directory/"
