//! Clients that are killed at any moment leave nothing behind.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;

use crate::client::{Client, run};
use crate::daemon::{Resources, with_shared};
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC, is_6_1, is_free, is_long};
use crate::video::{ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("kill_loop::after_close_the_real_node_is_free_at_once", closed),
    (
        "kill_loop::clients_killed_at_any_moment_leave_nothing_on_vmalloc",
        || killed(VMALLOC),
    ),
    (
        "kill_loop::clients_killed_at_any_moment_leave_nothing_on_dma_contig",
        || killed(CONTIG),
    ),
];

/// The daemon's resident memory may grow by this much, whatever the number of cycles: the allocator keeps freed
/// up to 128 KiB in each of its arenas, of which there are eight for each processor, and which of them have been used by
/// the first measurement is chance; and the kernel makes a huge page of one or takes it apart. 2,000 cycles (--long) still
/// show a leak of two KiB in each.
const NOISE_KIB: usize = 2048 + 2048;

/// close(2) on ours returns when the real node is closed, as a program that opens a camera again expects.
fn closed() -> anyhow::Result<()> {
    with_shared(|_| Ok(()))?;
    let mut busy = 0;
    let rounds = 1000;
    for _ in 0..rounds {
        let video = ours(VMALLOC).open()?;
        video.reqbufs(2)?;
        drop(video);
        match real(VMALLOC).open()?.reqbufs(2) {
            Err(Errno::EBUSY) => busy += 1,
            other => ensure!(other == Ok(2), "the real node says {other:?}"),
        }
    }
    ensure!(
        busy == 0,
        "the real node was still in use after {busy} of {rounds} times close(2) on ours"
    );
    Ok(())
}

/// Bytes in dma-bufs, by the kernel's own list.
pub(super) fn dma_buf_bytes() -> anyhow::Result<u64> {
    // "Total 4 objects, 1843200 bytes", behind a "Total 1 devices attached" for each of them.
    let info = fs::read_to_string("/sys/kernel/debug/dma_buf/bufinfo").context("debugfs")?;
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("Total ")?.strip_suffix(" bytes"))
        .context("no total in bufinfo")?;
    Ok(total.split_whitespace().nth(2).context("no bytes")?.parse()?)
}

/// The same while a client holds two buffers, which are dma-bufs where there is a heap and the device imports.
fn while_streaming(number: u32) -> anyhow::Result<u64> {
    let mut client = Client::start("dqbuf_sleeper", &[&ours(number).to_string()])?;
    client.until_asleep_in_dqbuf()?;
    let bytes = dma_buf_bytes()?;
    let least = if number == VMALLOC && !is_6_1() {
        2 * 320 * 180 * 2
    } else {
        0
    };
    ensure!(
        bytes >= least,
        "only {bytes} bytes of dma-bufs while a client streams"
    );
    Ok(bytes)
}

fn cycles(number: u32, count: u32, seed: u32) -> anyhow::Result<String> {
    let (count, seed, device) = (count.to_string(), seed.to_string(), ours(number).to_string());
    let args = ["-n", &count, "-s", &seed, &device];
    run("kill_loop", &args, Duration::from_secs(1500)).with_context(|| format!("seed {seed}"))
}

pub(super) fn resources() -> anyhow::Result<Resources> {
    with_shared(|daemon| daemon.resources())
}

fn killed(number: u32) -> anyhow::Result<()> {
    // Threads and caches that come with first use are no leak.
    cycles(number, 60, 99)?;
    let before = settled(&resources()?)?;
    let bytes_before = dma_buf_bytes()?;
    let bytes_streaming = while_streaming(number)?;
    let count = if is_long() { 2000 } else { 200 };
    let begin = Instant::now();
    let stages = cycles(number, count, 7)?;
    let took = begin.elapsed();
    is_free(number)?;
    let after = settled(&before)?;
    let bytes_after = dma_buf_bytes()?;
    figure(format!(
        "{}: {count} clients killed in {} s: {}; fds {} -> {}, threads {} -> {}, RSS {} -> {} KiB, dma-bufs {} -> {} bytes, {} while one streams",
        ours(number),
        took.as_secs(),
        stages.trim(),
        before.fds.len(),
        after.fds.len(),
        before.threads,
        after.threads,
        before.rss_kib,
        after.rss_kib,
        bytes_before,
        bytes_after,
        bytes_streaming
    ));
    ensure!(
        after.fds == before.fds,
        "fds: {:?} became {:?}",
        before.fds,
        after.fds
    );
    ensure!(
        after.threads <= before.threads,
        "{} threads became {}",
        before.threads,
        after.threads
    );
    ensure!(
        bytes_after == bytes_before,
        "{bytes_before} bytes of dma-bufs became {bytes_after}"
    );
    ensure!(
        after.rss_kib <= before.rss_kib + NOISE_KIB,
        "resident memory grew from {} to {} KiB",
        before.rss_kib,
        after.rss_kib
    );
    Ok(())
}

/// The daemon's resources, once its idle helper threads (which live two seconds longer than their last work) are
/// gone: no more than in `before`, or whatever there is after a while.
pub(super) fn settled(before: &Resources) -> anyhow::Result<Resources> {
    let end = Instant::now() + Duration::from_secs(6);
    thread::sleep(Duration::from_millis(2500));
    loop {
        let now = resources()?;
        if now.threads <= before.threads && now.fds == before.fds || Instant::now() > end {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(100));
    }
}
