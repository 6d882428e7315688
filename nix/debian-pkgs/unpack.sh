# Builder of flake.nix: unpacks $debs out of $pool, and copies $others, into $out, and does what
# the packages' maintainer scripts would have done, as far as an image needs it.
set -eu
mkdir -p "$out/usr/bin" "$out/usr/sbin" "$out/usr/lib" "$out/usr/lib64"
umask 022
cd "$out"
# Debian's merged /usr: packages that still ship /bin/x land in usr/bin through these links.
for d in bin sbin lib lib64; do ln -s "usr/$d" "$d"; done

export pool
# Documentation, translations and boot scripts are most of the files and none of the use.
printf '%s\n' $debs | xargs -P "${NIX_BUILD_CORES:-2}" -I{} sh -ec '
  dpkg-deb --fsys-tarfile "$pool/$1" | tar -x --keep-directory-symlink --no-same-owner --no-same-permissions \
    --exclude="./usr/share/doc" --exclude="./usr/share/man" --exclude="./usr/share/info" \
    --exclude="./usr/share/locale" --exclude="./usr/share/lintian" --exclude="./usr/share/bug" \
    --exclude="./usr/share/bash-completion" --exclude="./usr/share/zsh" \
    --exclude="./usr/share/fish" --exclude="./usr/share/doc-base" \
    --exclude="./usr/lib/systemd" --exclude="./lib/systemd" --exclude="./etc/init.d" \
    --exclude="./etc/cron.*" --exclude="./etc/init" --exclude="./etc/rc*.d" \
    --exclude="./usr/sbin/dockerd" --exclude="./usr/sbin/docker-proxy" \
    --exclude="./usr/bin/docker-proxy" --exclude="./usr/libexec/docker" \
    --exclude="./usr/sbin/docker-init" --exclude="./usr/bin/docker-init"
' unpack {}

for other in $others; do
  cp -R --no-preserve=ownership "$other/." "$out/"
  chmod -R u+w "$out"
done

# link NAME TARGET…: the first TARGET that is there, unless NAME is (update-alternatives' work).
link() {
  name=$1; shift
  [ ! -e "usr/bin/$name" ] && [ ! -L "usr/bin/$name" ] || return 0
  for target in "$@"; do
    [ -e "usr/bin/$target" ] || continue
    ln -s "$target" "usr/bin/$name"
    return 0
  done
}
link sh dash bash
link awk gawk mawk
link nawk gawk mawk
link which which.debianutils
link cc gcc
link c++ g++
link c99 c99-gcc
link c89 c89-gcc
link python python3
link node nodejs
link gzip busybox

# update-ca-certificates' work: one bundle, under the names that programs look for.
if [ -d usr/share/ca-certificates ]; then
  mkdir -p etc/ssl/certs usr/lib/ssl
  find usr/share/ca-certificates -name '*.crt' | LC_ALL=C sort | while read -r crt; do
    cat "$crt"; echo
  done >etc/ssl/certs/ca-certificates.crt
  ln -sf ca-certificates.crt etc/ssl/certs/ca-bundle.crt
  [ -e usr/lib/ssl/certs ] || [ -L usr/lib/ssl/certs ] || ln -s /etc/ssl/certs usr/lib/ssl/certs
  [ -e usr/lib/ssl/cert.pem ] || [ -L usr/lib/ssl/cert.pem ] ||
    ln -s /etc/ssl/certs/ca-certificates.crt usr/lib/ssl/cert.pem
fi

# openssh-server makes its configuration when it is installed; PAM's is made by other scripts and
# is not there.
if [ -e usr/sbin/sshd ] && [ ! -e etc/ssh/sshd_config ]; then
  mkdir -p etc/ssh/sshd_config.d
  cat >etc/ssh/sshd_config <<'EOF'
Include /etc/ssh/sshd_config.d/*.conf
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
EOF
fi

# What the guest fills in by itself, and what only a package manager reads.
rm -rf var/lib/dpkg etc/dpkg usr/share/debconf var/run var/lock run proc sys dev tmp root home boot
find . -name '*.dpkg-*' -delete
