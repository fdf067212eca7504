#!/bin/sh
# The first program of the small system: drivers, shared folders, the worker. It never ends before the machine is off.
# @EXPORTS@ and @WORKER@ are put in when the set is installed.
fail() {
    echo "samespace: $1" > /dev/console
    poweroff -f
}

# A JSON answer, with its length before it in eight bytes: see samespace.sdk.runtimes.child_frames.
tell() {
    printf "\\0\\0\\0\\0\\0\\0$(printf '\\%03o\\%03o' $((${#1} / 256)) $((${#1} % 256)))%s" "$1" >&3
}

# What can stand in a JSON string as it is.
plain() {
    tr -c '[:alnum:] .,:;()_/+=-' ' ' | tail -c 400
}

mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs devices /dev || fail "no kernel file systems"
for module in /modules/*; do
    insmod "$module" || fail "no driver $module"
done
rm -r /modules
for share in sysroot sdk bundle; do
    mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=131072 "$share" "/$share" || fail "no folder $share"
done
# Its node comes when the emulator has answered the driver.
tries=0
until set -- /dev/vport*p1 && [ -c "$1" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 200 ] || fail "no port"
    sleep 0.05
done
exec 3<> "$1" || fail "no port"

@EXPORTS@
mkfifo /errors
tail -n 3 < /errors > /printed &
last=$!
@WORKER@ <&3 >&3 2> /errors &
worker=$!
# A kernel that throws out of memory what the worker needs next does not say that memory is short: it crawls, for hours.
# Files are read again (in pages of 4 KiB) is what is counted, not time: that does not depend on how fast this emulator is.
watch() {
    limit=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
    limit=$((limit / 4 * 12))
    while sleep 1; do
        again=$(sed -n 's/^workingset_refault_file //p' /proc/vmstat)
        [ "$again" -lt "$limit" ] || break
    done
    echo "thrashing: it read $((again / 256)) MB of its own files again" > /thrashing
    kill -KILL "$worker"
}
watch &
wait "$worker"
status=$?
wait "$last"
if [ "$status" != 0 ]; then
    # The worker is gone: its question is answered in its place.
    killed=$(dmesg | sed -n 's/.*Out of memory: Killed process //p' | tail -n 1 | plain)
    [ ! -e /thrashing ] || killed=$(plain < /thrashing)
    printed=$(plain < /printed)
    tell "{\"host\": {}, \"versions\": {}, \"ended\": $status, \"killed\": \"$killed\", \"printed\": \"$printed\", \"bytes\": []}"
    # The rest of the question, until nobody is there any more.
    cat <&3 > /dev/null
fi
poweroff -f
