//! The memory promise: no page of a client stays pinned. `/proc/vmstat` counts the pages that drivers and others pin
//! (`nr_foll_pin_acquired`) and give back (`nr_foll_pin_released`).

use std::fs;

use anyhow::{Context, ensure};

use crate::daemon::{self, number_in};
use crate::kinds::{self, Maker, Memory};
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC, both_real};
use crate::sys::PAGE;
use crate::video::{Node, Side, ours, real};

pub const TESTS: &[(&str, Test)] = &[("pinning::no_page_of_a_client_stays_pinned", pinned)];

const BUFFERS: usize = 4;
const FRAMES: usize = 10;
/// Pages that others pin and give back while the two counters are read, one after the other: fewer than one buffer has.
const OTHERS: usize = 16;

/// Pages pinned since boot, and of them given back.
fn counters() -> anyhow::Result<(usize, usize)> {
    // Each processor keeps a part of the count to itself until it is asked.
    fs::read("/proc/sys/vm/stat_refresh")?;
    Ok((
        number_in("/proc/vmstat", "nr_foll_pin_acquired ")?,
        number_in("/proc/vmstat", "nr_foll_pin_released ")?,
    ))
}

/// Pages that a stream pins.
struct Pins {
    /// With a new pointer for each frame.
    with_new_pointers: usize,
    /// With pointers that it has had before.
    with_known_pointers: usize,
    /// Still pinned while its buffers are queued.
    held: usize,
}

/// Two streams; nothing if the memory is EFAULT.
fn stream(node: Node, memories: &[Memory], size: usize) -> anyhow::Result<Option<Pins>> {
    let length = u32::try_from(size)?;
    let video = node.open()?;
    video.reqbufs(u32::try_from(BUFFERS)?)?;
    let before = counters()?;
    for (index, memory) in (0..).zip(&memories[..BUFFERS]) {
        if video.qbuf(index, memory.pointer(), length).is_err() {
            return Ok(None);
        }
    }
    let queued = counters()?;
    video.streamon()?;
    for memory in &memories[BUFFERS..] {
        let done = video.dqbuf()?;
        video
            .qbuf(done.index, memory.pointer(), length)
            .with_context(|| format!("QBUF of a new pointer, {node}"))?;
    }
    let streamed = counters()?;
    let again = |frames: usize| -> anyhow::Result<()> {
        for _ in 0..frames {
            let done = video.dqbuf()?;
            video.qbuf(done.index, done.m, length)?;
        }
        Ok(())
    };
    // Those that are still queued are new, too.
    again(BUFFERS)?;
    let known = counters()?;
    again(FRAMES)?;
    let after = counters()?;
    let held = |now: (usize, usize)| (now.0 - before.0).saturating_sub(now.1 - before.1);
    Ok(Some(Pins {
        with_new_pointers: streamed.0 - queued.0,
        with_known_pointers: after.0 - known.0,
        held: held(queued).max(held(after)),
    }))
}

/// For the time of a copy the kernel pins pages, one side's: that is counted too, and over when the copy is. An import
/// pins nothing; only that its frames arrive is looked at once, in pages of the daemon's own.
fn pinned() -> anyhow::Result<()> {
    daemon::shared()?;
    let size = real(VMALLOC).open()?.sizeimage()? as usize;
    let pages = size.div_ceil(PAGE);
    ensure!(pages > OTHERS, "a buffer of {pages} pages");
    let kinds: &[(&str, Maker, &[Node])] = &[
        ("anonymous", kinds::anonymous, &[]),
        ("memfd", kinds::sealed_memfd, &[]),
        ("vfb", kinds::vfb, &[]),
        ("virtio-gpu fb", kinds::virtio_gpu_fb, &[]),
        ("vesafb", kinds::vesafb, &[]),
        ("virtio-gpu dumb", kinds::virtio_gpu_dumb, &[ours(VMALLOC)]),
        ("heap", kinds::heap, &[ours(VMALLOC)]),
        ("udmabuf", kinds::udmabuf, &[ours(VMALLOC)]),
    ];
    for (kind, make, imported) in kinds {
        for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
            let mut memories = vec![];
            for _ in 0..BUFFERS + FRAMES {
                memories.extend(make(size, 0)?);
            }
            if memories.is_empty() {
                // Not on this kernel.
                continue;
            }
            for memory in &memories {
                memory.clear()?;
            }
            let Some(pins) = stream(node, &memories, size).context(*kind)? else {
                ensure!(node.side == Side::Real, "{kind}, {node}: EFAULT");
                continue;
            };
            figure(format!(
                "{kind}, {node}, {FRAMES} frames of {pages} pages: pinned {} with new pointers, {} with known ones; held {}",
                pins.with_new_pointers, pins.with_known_pointers, pins.held
            ));
            if node.side == Side::Real || both_real() {
                ensure!(
                    pins.held + OTHERS >= BUFFERS * pages && pins.with_new_pointers >= FRAMES * pages,
                    "{kind}: the real node has pinned {} pages, and holds {}: they are not counted",
                    pins.with_new_pointers,
                    pins.held
                );
            } else {
                ensure!(
                    pins.held <= OTHERS,
                    "{kind}, {node}: {} pages stay pinned",
                    pins.held
                );
                ensure!(
                    !imported.contains(&node) || pins.with_known_pointers <= OTHERS,
                    "{kind}, {node}: {} pages were pinned for frames that were imported",
                    pins.with_known_pointers
                );
            }
        }
    }
    Ok(())
}
