//! The memory promise: no page of a client stays pinned. `/proc/vmstat` counts the pages that drivers and others pin
//! (`nr_foll_pin_acquired`) and give back (`nr_foll_pin_released`).

use std::fs;

use anyhow::ensure;

use crate::daemon::{self, number_in};
use crate::kinds::{self, Maker, Memory};
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC, both_real};
use crate::sys::PAGE;
use crate::video::{Node, Side, ours, real};

pub const TESTS: &[(&str, Test)] = &[("pinning::no_page_of_a_client_stays_pinned", pinned)];

const BUFFERS: usize = 4;
const FRAMES: usize = 20;

/// Pages pinned since boot, and of them given back.
fn counters() -> anyhow::Result<(usize, usize)> {
    // Each processor keeps a part of the count to itself until it is asked.
    fs::read("/proc/sys/vm/stat_refresh")?;
    Ok((
        number_in("/proc/vmstat", "nr_foll_pin_acquired ")?,
        number_in("/proc/vmstat", "nr_foll_pin_released ")?,
    ))
}

/// Pages that a stream pins, and those of them that are still pinned while its buffers are queued.
struct Pins {
    acquired: usize,
    held: usize,
}

/// A stream with a new pointer for each frame; nothing if the memory is EFAULT.
fn stream(node: Node, make: Maker, size: usize) -> anyhow::Result<Option<Pins>> {
    let mut memories: Vec<Memory> = vec![];
    for _ in 0..BUFFERS + FRAMES {
        let Some(memory) = make(size, 0)? else {
            return Ok(None);
        };
        memory.clear()?;
        memories.push(memory);
    }
    let length = u32::try_from(size)?;
    let before = counters()?;
    let video = node.open()?;
    video.reqbufs(u32::try_from(BUFFERS)?)?;
    for (index, memory) in (0..).zip(&memories[..BUFFERS]) {
        if video.qbuf(index, memory.pointer(), length).is_err() {
            return Ok(None);
        }
    }
    let queued = counters()?;
    video.streamon()?;
    for memory in &memories[BUFFERS..] {
        let done = video.dqbuf()?;
        video.qbuf(done.index, memory.pointer(), length)?;
    }
    let after = counters()?;
    let held = |now: (usize, usize)| (now.0 - before.0).saturating_sub(now.1 - before.1);
    Ok(Some(Pins {
        acquired: after.0 - before.0,
        held: held(queued).max(held(after)),
    }))
}

fn pinned() -> anyhow::Result<()> {
    daemon::shared()?;
    let size = real(VMALLOC).open()?.sizeimage()? as usize;
    let pages = size.div_ceil(PAGE);
    // Through the client's address space the kernel pins page by page for the time of the copy.
    let kinds: &[(&str, Maker, bool)] = &[
        ("anonymous", kinds::anonymous, true),
        ("memfd", kinds::sealed_memfd, true),
        ("vfb", kinds::vfb, true),
        ("virtio-gpu fb", kinds::virtio_gpu_fb, true),
        ("vesafb", kinds::vesafb, false),
        ("virtio-gpu dumb", kinds::virtio_gpu_dumb, false),
        ("heap", kinds::heap, false),
        ("udmabuf", kinds::udmabuf, false),
    ];
    for (kind, make, may_pin) in kinds {
        for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
            let Some(pins) = stream(node, *make, size)? else {
                continue;
            };
            figure(format!(
                "{kind}, {node}: {FRAMES} frames pinned {} pages, {} of them held while queued",
                pins.acquired, pins.held
            ));
            if node.side == Side::Real || both_real() {
                ensure!(
                    pins.held >= BUFFERS * pages && pins.acquired >= FRAMES * pages,
                    "{kind}: the real node has pinned {} pages, {} held: they are not counted",
                    pins.acquired,
                    pins.held
                );
            } else {
                ensure!(pins.held == 0, "{kind}, {node}: {} pages stay pinned", pins.held);
                ensure!(
                    *may_pin || pins.acquired == 0,
                    "{kind}, {node}: {} pages were pinned",
                    pins.acquired
                );
            }
        }
    }
    Ok(())
}
