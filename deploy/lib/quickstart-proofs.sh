# shellcheck shell=bash
# quickstart's proofs that the disks are what they claim to be. To be sourced by deploy/quickstart, whose IMAGES,
# RUNTIME, GUEST and BASE it uses.

prove_all() {
    DISKS=$RUNTIME/disks/$GUEST
    SCRATCH=$(mktemp -d)
    trap 'rm -rf "$SCRATCH"' EXIT
    prove_with_a_file_system vda root.raw
    prove_with_a_pattern vdb raw data.raw
    prove_with_a_pattern vdc qcow scratch.qcow
    prove_read_only sda install.iso
}

# Through the device a file is written to a file system; in the image it is found without the device.
prove_with_a_file_system() {
    local device=$DISKS/$1 image=$IMAGES/$2 proof
    proof="written to $1 at $(date --iso-8601=seconds)"
    if ! dumpe2fs -h "$device" >/dev/null 2>&1; then
        mkfs.ext4 -q -L demo "$device"
        say "$1: made an ext4 file system"
    fi
    write_file_on "$device" "$proof"
    say "$1: mounted it, wrote a file, unmounted it"
    same "$1: debugfs finds the file in $2" "$proof" "$(debugfs -R 'cat /proof.txt' "$image" 2>/dev/null)"
}

write_file_on() (
    mount_point=$SCRATCH/mount
    mkdir -p "$mount_point"
    mount "$1" "$mount_point"
    trap 'umount "$mount_point"' EXIT
    printf '%s\n' "$2" >"$mount_point/proof.txt"
)

# Random bytes are written through the device, read back past its cache, and found in the image by qemu-img.
prove_with_a_pattern() {
    local device=$DISKS/$1 format=$2 image=$IMAGES/$3 wanted
    head -c 4M /dev/urandom >"$SCRATCH/pattern"
    wanted=$(digest "$SCRATCH/pattern")
    dd if="$SCRATCH/pattern" of="$device" bs=1M conv=notrunc,fsync status=none
    say "$1: wrote 4 MiB of random bytes, SHA-256 $wanted"
    blockdev --flushbufs "$device"
    same "$1: read back" "$wanted" "$(digest "$device")"
    # The tap has the image open; reading beside it is safe since all was synced.
    qemu-img convert --force-share -f "$format" -O raw "$image" "$SCRATCH/content"
    same "$1: qemu-img finds in $3 ($format)" "$wanted" "$(digest "$SCRATCH/content")"
}

prove_read_only() {
    local device=$DISKS/$1 image=$IMAGES/$2 refusal
    same "$1: has the content of $2" "$(digest "$image")" "$(digest "$device")"
    if refusal=$(LC_ALL=C dd if=/dev/zero of="$device" bs=512 count=1 conv=notrunc,fsync 2>&1); then
        die "the cdrom $1 took a write" "That is a defect: report it with $BASE/agent.log."
    fi
    refusal=${refusal%%$'\n'*}
    say "$1: a write is refused: ${refusal##*: }"
}

# Of the first 4 MiB, cut short for people.
digest() { head -c 4M "$1" | sha256sum | cut -c 1-16; }

# same WHAT WANTED FOUND
same() {
    [ "$2" = "$3" ] || die "$1: '$3' instead of '$2'" "That is a defect: report it with $BASE/agent.log."
    say "$1: $3"
}
