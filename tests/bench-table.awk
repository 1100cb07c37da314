# Makes the table of tests/bench from figures.txt: lines of `kind [size] variant
# key=value...`, one for each round. Run where the latency files are.

# The median of the rounds: one that the host disturbed does not count.
function median(key, field,    i, j, v, value) {
    for (i = 1; i <= n[key]; i++) {
        v = seen[key, field, i] + 0
        for (j = i - 1; j >= 1 && value[j] > v; j--) value[j + 1] = value[j]
        value[j + 1] = v
    }
    return n[key] ? value[int((n[key] + 1) / 2)] : 0
}
function div(a, b) { return b ? sprintf("%.2f", a / b) : "-" }
# Of the client, and of the daemon where it takes part.
function cpu(size, variant,    key) {
    key = "stream " size " " variant
    return median(key, "client_us") + (variant ~ /^ours|-ours$/ ? median(key, "daemon_us") : 0)
}
# The real node's, or that it has none.
function native(size, variant) { return n["stream " size " " variant] ? sprintf("%.0f", cpu(size, variant)) : "refused" }
function busy(size, variant) { return median("stream " size " " variant, "busy_us") }
function percentile(size, variant, p,    sorted, line, count, wanted, value) {
    sorted = "sort -n latency-" size "-" variant " 2>/dev/null"
    while ((sorted | getline line) > 0) value[++count] = line
    close(sorted)
    wanted = int(count * p / 100 + 0.999)
    return count ? value[wanted] : 0
}
function cpu_row(size, what, real, ours,    k, contig, mmap) {
    contig = real == "contig-mmap" # this driver has no USERPTR
    mmap = contig ? real : "real-mmap"
    k = "stream " size " " ours
    if (!n[k]) return # this kernel has not got the memory
    printf "  %-10s %-30s %8.0f %8s %8.0f %-19s %6s %6s %8s\n", size, what, cpu(size, mmap), contig ? "refused" : native(size, real), cpu(size, ours),
        sprintf("= %.0f + %.0f", median(k, "client_us"), median(k, "daemon_us")), contig ? "-" : div(cpu(size, ours), cpu(size, real)), div(cpu(size, ours), cpu(size, mmap)),
        div(busy(size, ours), busy(size, mmap))
}
function qbuf_row(what, memory,    i, keys, row) {
    split("0-same 0-new 64-same 64-new", keys, " ")
    for (i = 1; i <= 4; i++) {
        sub("-", "-" memory "-", keys[i])
        row = row sprintf(" %10s", n["qbuf " keys[i]] ? sprintf("%.0f", median("qbuf " keys[i], "qbuf_us")) : "-")
    }
    printf "  %-41s%s\n", what, row
}
function latency_row(size, what, real, ours,    a, b, c, d) {
    a = percentile(size, real, 50); b = percentile(size, real, 99)
    c = percentile(size, ours, 50); d = percentile(size, ours, 99)
    printf "  %-10s %-30s %8.0f %8.0f %8.0f %8.0f %8.0f %8.0f %8s\n", size, what, a, b, c, d, c - a, d - b, div(c, a)
}
# Of a screen: pictures a second as fast as the program can, and CPU of program, daemon and machine at 25 a second.
function redraw_row(card, what, variant,    fast, paced, idle, real) {
    fast = "redraw " card "-" variant "-fast"; paced = "redraw " card "-" variant "-paced"; idle = "redraw " card "-" variant "-idle"
    real = "redraw " card "-real-"
    if (!n[fast] && !n[paced]) return
    printf "  %-10s %-30s %8.1f %6s %9.0f %9.0f %9.0f %6s %8s %9.2f %9.2f\n", card, what, median(fast, "rate"),
        div(median(fast, "rate"), median(real "fast", "rate")), median(paced, "client_us"), median(paced, "daemon_us"), median(paced, "busy_us"),
        div(median(paced, "client_us") + median(paced, "daemon_us"), median(real "paced", "client_us") + median(real "paced", "daemon_us")),
        div(median(paced, "busy_us"), median(real "paced", "busy_us")), median(idle, "daemon_us") / 1e4, median(idle, "busy_us") / 1e4
}
function redraw_table(    i, cards) {
    if (!screens) return
    printf "\n%-43s %8s %6s %9s %9s %9s %6s %8s %9s %9s\n", "Redraw of 1280x800", "a second", "to", "program", "daemon", "machine", "to", "machine", "idle: %", "machine"
    printf "%-43s %8s %6s %9s %9s %9s %6s %8s %9s %9s\n", "", "at most", "real", "us", "us", "us", "real", "to real", "daemon", "%"
    split("virtio bochs", cards, " ")
    for (i = 1; i <= 2; i++) {
        redraw_row(cards[i], "real node", "real")
        redraw_row(cards[i], "ours in front of it", "ours")
        redraw_row(cards[i], "KMS, direct", "kms-direct")
        redraw_row(cards[i], "KMS, shadow, 32 bits", "kms-shadow")
        redraw_row(cards[i], "KMS, 16 bits", "kms-16")
        redraw_row(cards[i], "KMS, 8 bits", "kms-8")
        redraw_row(cards[i], "KMS, 640x400 doubled", "kms-doubled")
    }
    print "  us per picture of 25 a second; idle: the screen is mapped, and nothing drawn; machine: all processors, of 100 %"
}
$1 == "redraw" { screens = 1 }
{
    key = $1 " " $2 ($1 == "stream" ? " " $3 : "")
    n[key]++
    for (i = 2; i <= NF; i++) if (split($i, pair, "=") == 2) seen[key, pair[1], n[key]] = pair[2]
}
$1 == "calls" { calls[$2, $3] = $4 }
$1 == "calls" && $3 !~ /^(copied-bytes|switches)$/ && $4 >= 0.05 { total[$2] += $4; list[$2] = list[$2] sprintf("  %s %.2f", $3, $4) }
$1 == "copy" { copies[++copy_count] = "copy " $2 }
END {
    printf "vidcompat bench, Linux %s in QEMU without KVM: read ratios, not times. Medians of rounds that took turns.\n\n", kernel
    if (alone) { redraw_table(); exit }
    printf "%-43s %8s %8s %8s %-19s %6s %6s %8s\n", "CPU per frame, us", "real", "real", "ours", "= client + daemon", "to", "to", "machine"
    printf "%-43s %8s %8s %8s %-19s %6s %6s %8s\n", "", "mmap", "userptr", "", "", "userptr", "mmap", ""
    split("640x480 1920x1080", order, " ")
    for (i = 1; i <= 2; i++) {
        cpu_row(order[i], "same pointers", "real-same", "ours-same")
        cpu_row(order[i], "new pointers", "real-new", "ours-new")
        cpu_row(order[i], "shim: MMAP", "real-same", "ours-shim")
        cpu_row(order[i], "shim: adopted", "real-same", "ours-adopted")
        cpu_row(order[i], "shim: adopted, new pointers", "real-new", "ours-adopted-new")
        cpu_row(order[i], "shim: MMAP, dma-contig", "contig-mmap", "contig-shim-ours")
        cpu_row(order[i], "shim: adopted, dma-contig", "contig-mmap", "contig-adopted-ours")
        cpu_row(order[i], "new pointers, poll", "real-poll", "ours-poll")
        cpu_row(order[i], "new pointers, dma-contig", "contig-mmap", "contig-ours")
        cpu_row(order[i], "heap buffers, no copy", "real-heap", "ours-heap")
        cpu_row(order[i], "  new pointers", "real-heap", "ours-heap-new")
        cpu_row(order[i], "vivid's buffers, no copy", "real-vivid", "ours-vivid")
        cpu_row(order[i], "  new pointers", "real-vivid", "ours-vivid-new")
    }
    print "  machine: busy time of all processors, the driver included, ours to the real node\047s MMAP\n"
    printf "%-43s %10s %10s %10s %10s\n", "QBUF of 1920x1080, us", "real, same", "real, new", "ours, same", "ours, new"
    qbuf_row("plain memory", "malloc")
    qbuf_row("vivid\047s buffer", "video")
    qbuf_row("heap buffer", "heap")
    print "  same: the pointer of this index\047s last QBUF; new: another one, which has to be looked behind\n"
    printf "%-43s %8s %8s %8s %8s %8s %8s %8s\n", "Latency, us: from the driver's timestamp", "real", "real", "ours", "ours", "added", "added", "ratio"
    printf "%-43s %8s %8s %8s %8s %8s %8s %8s\n", "to the return of DQBUF", "p50", "p99", "p50", "p99", "p50", "p99", "p50"
    for (i = 1; i <= 2; i++) {
        latency_row(order[i], "blocking DQBUF", "real-new", "ours-new")
        latency_row(order[i], "poll + DQBUF", "real-poll", "ours-poll")
        latency_row(order[i], "blocking, contig (real: mmap)", "contig-mmap", "contig-ours")
    }
    printf "\nFlat ioctl (G_INPUT): real %.2f us, ours %.2f us, ratio %s; FUSE requests per ioctl %.3f, answers %.3f\n",
        median("ioctl 0", "wall_us"), median("ioctl 64", "wall_us"), div(median("ioctl 64", "wall_us"), median("ioctl 0", "wall_us")),
        median("ioctl 64", "reads"), median("ioctl 64", "writes")
    printf "\nCopy, MB/s: %19s %19s %19s %9s %9s\n", "daemon's copy", "memcpy, same source", "memcpy, malloc", "ratio", "ratio"
    for (i = 1; i <= copy_count; i++) {
        k = copies[i]
        printf "  %7d bytes %15.0f %19.0f %19.0f %9s %9s\n", median(k, "size"), median(k, "daemon"), median(k, "memcpy_mapping"), median(k, "memcpy_malloc"),
            div(median(k, "daemon"), median(k, "memcpy_mapping")), div(median(k, "daemon"), median(k, "memcpy_malloc"))
    }
    printf "\nPer frame (640x480): copies %.2f, bytes copied to bytes of the frame %s; FUSE requests %.2f, with poll %.2f\n",
        calls["blocking", "process_vm_writev"], div(calls["blocking", "copied-bytes"], 640 * 360 * 2),
        calls["blocking", "read(cuse)"], calls["poll", "read(cuse)"]
    printf "Of the daemon, per frame:\n  blocking: %.1f thread switches, %.1f system calls:%s\n  poll: %.1f thread switches, %.1f system calls:%s\n",
        calls["blocking", "switches"], total["blocking"], list["blocking"], calls["poll", "switches"], total["poll"], list["poll"]
    redraw_table()
    printf "\nMemory of the daemon, KiB           idle  streaming 4 x 1080p   after\n"
    split("rss dma_buf threads fds", kinds, " ")
    label["rss"] = "VmRSS"; label["dma_buf"] = "heap buffers"; label["threads"] = "threads (number)"; label["fds"] = "descriptors (number)"
    for (i = 1; i <= 4; i++)
        printf "  %-28s %9d %20d %7d\n", label[kinds[i]], median("memory idle", kinds[i]), median("memory streaming", kinds[i]), median("memory after", kinds[i])
}
