# udisksctl loop-setup FILE for each file, on a D-Bus of its own; prints the seconds that took.
#
#     unshare --mount --net --pid --kill-child --fork sh -e udisks.sh UDISKSD UDEVD FILE…
#
# The host's daemons are left alone: this is a mount namespace with a /run of its own, and a network namespace, as the
# kernel's and udev's messages about devices are told to each of those apart. udevd has no rules here, so all that it
# makes are links in /dev/block. The daemons end with this script, as they are in its process namespace.

udisksd=$1 udevd=$2
shift 2

mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /usr/lib/udev/rules.d /etc/udev/rules.d /var/lib/udisks2; do
    if [ -d "$folder" ]; then mount -t tmpfs tmpfs "$folder"; fi
done
mkdir /run/udev /run/udisks2

cat >/run/bus.conf <<'END'
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=/run/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
END

export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus
"$udevd" >/run/udevd.log 2>&1 &
dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile >/run/dbus.log 2>&1 &
for _ in $(seq 200); do
    if [ -S /run/bus ] && [ -S /run/udev/control ]; then break; fi
    sleep 0.05
done
"$udisksd" >/run/udisksd.log 2>&1 &
for _ in $(seq 200); do
    if grep -q "Acquired the name" /run/udisksd.log; then break; fi
    sleep 0.05
done

set_up() {
    # LOOP_CTL_GET_FREE and then LOOP_CONFIGURE: whoever else makes devices may come in between (EBUSY).
    for _ in 1 2 3 4 5; do
        if udisksctl loop-setup --no-user-interaction -f "$1" >/run/setup.log 2>&1; then return; fi
    done
    cat /run/setup.log /run/udisksd.log >&2
    return 1
}

began=$(date +%s%N)
for file; do set_up "$file"; done
echo "$(($(date +%s%N) - began))"
