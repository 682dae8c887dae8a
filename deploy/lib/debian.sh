# shellcheck shell=bash
# What the scripts in deploy/ need of a Debian host: packages, and a Python environment of their own. To be sourced
# after console.sh.

# A shell made by plain `su` has no sbin in its PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Debian's own, since only for that one can python3-venv be installed.
readonly PYTHON=/usr/bin/python3

refuse_off_debian() {
    command -v apt-get >/dev/null ||
        die "this host has no apt, so what is missing can't be installed" \
            "Use Debian 12 or 13, or follow README.md by hand."
}

refuse_old_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$PYTHON" --version) is too old" "Python 3.11 or newer is needed: use Debian 12 or 13."
}

# qemu-img and qemu-storage-daemon; the latter moved between the two with Debian 13.
QEMU_PACKAGES=(qemu-utils)
if grep -qs '^VERSION_ID="12"' /etc/os-release; then QEMU_PACKAGES+=(qemu-system-common); fi
readonly QEMU_PACKAGES

# install_packages NAME… - by apt, those that are missing
install_packages() {
    local missing=() package
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] ||
        die "these Debian packages are missing: ${missing[*]}" \
            "Run this as root, or: sudo apt-get install --no-install-recommends ${missing[*]}"
    patiently "Reading the package lists" apt-get -q update ||
        say "The package lists could not all be read; trying with those that are here."
    patiently "Installing by apt: ${missing[*]}" without_starting_services apt_install "${missing[@]}" ||
        die "apt could not install what is missing" "The lines above say why; mend that and run this again."
    [[ " ${missing[*]} " != *" mosquitto "* ]] || keep_mosquitto_from_starting
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"
}

# Installing mosquitto would start a broker on port 1883 that nobody asked for.
without_starting_services() (
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || { "$@"; exit; }
    # A signal waits for what runs, and then takes the file away too.
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" || exit
    "$@"
)

# Nor shall the next boot start it.
keep_mosquitto_from_starting() {
    deb-systemd-helper disable mosquitto.service >/dev/null 2>&1 || true
    update-rc.d mosquitto disable >/dev/null 2>&1 || true
    say "Debian's own mosquitto.service was neither started nor enabled: only the program is used."
}

# make_venv FOLDER WHAT - a Python environment with the checkout installed editable; WHAT as for pip, e.g. .[test]
make_venv() {
    local folder=$1 what=$2 recipe
    recipe=$(printf '%s\n' "$what" "$("$PYTHON" --version)" "$PWD"; sha256sum pyproject.toml)
    [ "$(cat "$folder/recipe" 2>/dev/null)" != "$recipe" ] || return 0
    patiently "Installing Python packages into $folder" fill_venv "$folder" "$what" ||
        die "pip could not install what pyproject.toml names" "The lines above say why; mend that and run this again."
    printf '%s\n' "$recipe" >"$folder/recipe"
}

fill_venv() {
    "$PYTHON" -m venv --clear "$1" && "$1/bin/python" -m pip --quiet --disable-pip-version-check install --editable "$2"
}
