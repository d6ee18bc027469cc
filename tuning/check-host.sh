#!/bin/sh
# Says what this host forbids RingMQ, or what it costs. Run as the user that will run the broker.
# Usage: check-host.sh [DIR]   (DIR: where the data will be; default: here)
# Exits with 1 if a broker would not start.
dir=${1:-.}
bad=0
good() { printf 'good  %s\n' "$1"; }
note() { printf 'note  %s\n' "$1"; }
fail() { printf 'BAD   %s\n' "$1"; bad=1; }

kernel=$(uname -r)
major=${kernel%%.*}
rest=${kernel#*.}
minor=${rest%%[!0-9]*}
if [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 1 ]; }; then
    good "kernel $kernel"
else
    fail "kernel $kernel: 6.1 or newer is needed"
fi

disabled=$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)
case $disabled in
    0) good "io_uring is allowed (a container's seccomp profile may still forbid it)" ;;
    1) note "kernel.io_uring_disabled=1: only with CAP_SYS_ADMIN or in the group kernel.io_uring_group" ;;
    *) fail "kernel.io_uring_disabled=$disabled: set it to 0" ;;
esac

memlock=$(ulimit -l 2>/dev/null || echo unknown)
case $memlock in
    unlimited) good "RLIMIT_MEMLOCK is unlimited" ;;
    unknown) note "RLIMIT_MEMLOCK: this shell cannot tell" ;;
    *)
        if [ "$memlock" -ge 81920 ]; then
            good "RLIMIT_MEMLOCK is $memlock KiB"
        else
            note "RLIMIT_MEMLOCK is $memlock KiB: below log.tail_bytes buffers are not registered, writes cost more"
        fi ;;
esac

files=$(ulimit -Hn)
if [ "$files" = unlimited ] || [ "$files" -ge 17000 ]; then
    good "RLIMIT_NOFILE (hard) is $files"
else
    note "RLIMIT_NOFILE (hard) is $files: fewer connections than the default limits.connections"
fi

backlog=$(cat /proc/sys/net/core/somaxconn)
if [ "$backlog" -ge 4096 ]; then
    good "net.core.somaxconn is $backlog"
else
    note "net.core.somaxconn is $backlog: bursts of connections are dropped beyond it; 4096 is better"
fi

governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null || echo none)
case $governor in
    performance | none) good "CPU governor: $governor" ;;
    *) note "CPU governor: $governor; performance wakes up faster" ;;
esac

if ! [ -d "$dir" ] || ! [ -w "$dir" ]; then
    fail "$dir: not a directory that this user may write"
else
    probe=$dir/.ringmq-probe.$$
    if dd if=/dev/zero of="$probe" bs=4096 count=1 oflag=direct 2>/dev/null; then
        good "$dir: O_DIRECT works"
    else
        note "$dir: no O_DIRECT here; writes go through the page cache with fdatasync"
    fi
    rm -f "$probe"
    free=$(df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "$free" -ge 4096 ]; then
        good "$dir: $free MiB are free"
    else
        note "$dir: only $free MiB are free; sends are refused below log.disk_free_bytes_min"
    fi
fi
exit $bad
