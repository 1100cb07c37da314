//! Each way to cheat: a client gets through us nothing that its own mapping does not give it. What it must not write to
//! is looked at after each try.

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::SealFlag;
use vidcompat_proto::abi::v4l2::buf_flag;

use super::resolve_matrix::{How, fail_with, frame_from};
use crate::client::AT_ONCE;
use crate::daemon;
use crate::helper::{self, as_nobody};
use crate::kinds::{self, Maker, Memory};
use crate::nodes::named;
use crate::picture::Picture;
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC, is_6_1, is_long};
use crate::sys::{Area, DmaBuf, PAGE, Rights, Slot, Source};
use crate::video::{Node, Side, Video, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "cheats::memory_of_any_kind_that_may_not_be_written_to_is_efault",
        forbidden,
    ),
    (
        "cheats::another_users_memory_opened_for_reading_is_not_written_to",
        another_user,
    ),
    ("cheats::nothing_beyond_the_mapping_is_written_to", beyond),
    ("cheats::what_is_mapped_privately_is_not_written_to", private),
    ("cheats::memory_that_may_not_be_read_is_no_picture", unreadable),
    ("cheats::what_may_only_be_read_is_not_lent_to_a_device", only_read),
    (
        "cheats::mappings_that_change_during_qbuf_lead_nowhere_else",
        remapped,
    ),
    (
        "cheats::fds_that_change_during_qbuf_lead_nowhere_else",
        renumbered,
    ),
];

/// Every kind that is mapped (malloc's is not ours to protect).
const KINDS: &[(&str, Maker)] = &[
    ("anonymous", kinds::anonymous),
    ("shared anonymous", kinds::shared_anonymous),
    ("memfd", kinds::memfd),
    ("sealed memfd", kinds::sealed_memfd),
    ("shared file", kinds::shared_file),
    ("private file", kinds::private_file),
    ("vfb", kinds::vfb),
    ("vesafb", kinds::vesafb),
    ("virtio-gpu fb", kinds::virtio_gpu_fb),
    ("PCI memory", kinds::bar),
    ("V4L2 vmalloc", kinds::v4l2_vmalloc),
    ("V4L2 contig", kinds::v4l2_contig),
    ("virtio-gpu dumb", kinds::virtio_gpu_dumb),
    ("virtio-gpu PRIME", kinds::virtio_gpu_prime),
    ("heap", kinds::heap),
    ("udmabuf", kinds::udmabuf),
    ("half anonymous, half heap", kinds::half_heap),
];

/// What a part of the memory is made, and which: from where, and how much of a buffer of `size` bytes.
type Taken = (&'static str, Rights, fn(size: usize) -> (usize, usize));

const TAKEN: &[Taken] = &[
    ("all read-only", Rights::ReadOnly, |size| (0, size)),
    ("all inaccessible", Rights::None, |size| (0, size)),
    ("the last page read-only", Rights::ReadOnly, |size| {
        (size.next_multiple_of(PAGE) - PAGE, PAGE)
    }),
    ("a page in the middle inaccessible", Rights::None, |size| {
        (size / 2 / PAGE * PAGE, PAGE)
    }),
    ("all but the first page inaccessible", Rights::None, |size| {
        (PAGE, size - PAGE)
    }),
];

fn frame_size() -> anyhow::Result<usize> {
    Ok(real(VMALLOC).open()?.sizeimage()? as usize)
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// QBUF says EFAULT, and nothing has changed.
    Refused,
    /// The buffer says that its frame is lost, and nothing has changed.
    Lost,
    /// There is a frame.
    Written,
}

fn forbidden() -> anyhow::Result<()> {
    daemon::shared()?;
    let size = frame_size()?;
    let mut failures = vec![];
    let mut lost = 0;
    for (kind, make) in KINDS {
        for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
            let Some(memory) = make(size, 0)? else { continue };
            let video = node.open()?;
            video.reqbufs(2)?;
            video.streamon()?;
            for (how, rights, part) in TAKEN {
                // Buffer 0 has had this memory before: what is remembered of it must not count.
                for index in [1, 0]
                    .into_iter()
                    .filter(|index| *index == 1 || node.side == Side::Ours)
                {
                    let outcome = try_forbidden(&video, &memory, index, *rights, part(size))
                        .with_context(|| format!("{kind}, {how}, {node}, buffer {index}"))?;
                    lost += usize::from(outcome == Outcome::Lost);
                    let is_right = match outcome {
                        Outcome::Refused => true,
                        // As a driver, which does not look again at a pointer that it knows.
                        Outcome::Lost => index == 0,
                        // 6.1 writes where a program may not (FOLL_FORCE), if the page is private.
                        Outcome::Written => node.side == Side::Real && is_6_1(),
                    };
                    if !is_right {
                        failures.push(format!("{kind}, {how}, {node}, buffer {index}: {outcome:?}"));
                    }
                }
            }
        }
    }
    figure(format!(
        "memory forbidden after a first frame: {lost} frames said to be lost, the others EFAULT"
    ));
    fail_with(&failures)
}

/// Tries to get a frame into memory from which these rights have been taken.
fn try_forbidden(
    video: &Video,
    memory: &Memory,
    index: u32,
    rights: Rights,
    (from, len): (usize, usize),
) -> anyhow::Result<Outcome> {
    let len = len.next_multiple_of(PAGE);
    let size = u32::try_from(memory.size)?;
    // Some kinds are served by nobody.
    if index == 0 && video.qbuf(0, memory.pointer(), size).is_ok() {
        video.dqbuf()?;
    }
    memory.clear()?;
    memory.area.protect(from, len, rights)?;
    let done = video
        .qbuf(index, memory.pointer(), size)
        .and_then(|_| video.dqbuf());
    memory.area.protect(from, len, Rights::ReadWrite)?;
    let outcome = match done {
        Err(Errno::EFAULT) => Outcome::Refused,
        Ok(done) if done.flags & buf_flag::ERROR != 0 => Outcome::Lost,
        Ok(_) => return Ok(Outcome::Written),
        Err(errno) => return Err(errno.into()),
    };
    // What is still writable may have the beginning of a lost frame.
    match (outcome, from) {
        (Outcome::Lost, 1..) => memory.is_clear_in(from..from + len)?,
        _ => memory.is_clear()?,
    }
    Ok(outcome)
}

/// Something that only its owner may write to, and an fd of it that only reads.
struct Victim {
    read_only: File,
    len: usize,
}

impl Victim {
    /// A memfd of zeros.
    fn memfd(len: usize) -> anyhow::Result<Self> {
        use std::os::fd::AsRawFd;
        let len = len.next_multiple_of(PAGE);
        let writable = kinds::memfd_of(len, SealFlag::empty())?;
        let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
        Ok(Self {
            read_only: File::open(path)?,
            len,
        })
    }

    /// A dma-buf of zeros; `None` where there is no heap.
    fn heap(len: usize) -> anyhow::Result<Option<Self>> {
        if is_6_1() {
            return Ok(None);
        }
        let dma_buf = DmaBuf::from_heap_for_reading(len)?;
        Ok(Some(Self {
            len: dma_buf.len(),
            read_only: File::from(dma_buf.into_fd()),
        }))
    }

    fn all(len: usize) -> anyhow::Result<Vec<(&'static str, Self)>> {
        let mut all = vec![("memfd", Self::memfd(len)?)];
        all.extend(Self::heap(len)?.map(|heap| ("dma-buf", heap)));
        Ok(all)
    }

    /// An error if a byte of it is no longer 0.
    fn is_untouched(&self) -> anyhow::Result<()> {
        let area = Area::reserve(self.len)?;
        let source = Source::Shared(self.read_only.as_fd(), 0);
        area.map(0, self.len, source, Rights::ReadOnly)?;
        let written = area.read(0, self.len)?.iter().position(|byte| *byte != 0);
        ensure!(written.is_none(), "its byte {written:?} was written");
        Ok(())
    }
}

fn another_user() -> anyhow::Result<()> {
    daemon::shared()?;
    let size = frame_size()?;
    let nodes = [real(VMALLOC), ours(VMALLOC), ours(CONTIG)];
    // Ours have the modes of the real ones: soon, if these change.
    for node in nodes.into_iter().chain([real(CONTIG)]) {
        fs::set_permissions(node.path(), Permissions::from_mode(0o666))?;
    }
    let mut lines = vec![];
    for node in nodes {
        let path = node.to_string();
        for (what, victim) in Victim::all(size)? {
            let said = as_nobody(&["capture-stdin", &path, "shared"], victim.read_only.try_clone()?)?;
            ensure!(
                said == "QBUF EFAULT",
                "read-only mapping of a {what}, {node}: {said}"
            );
            victim.is_untouched().with_context(|| format!("{what}, {node}"))?;
            lines.push(format!("a {what} mapped for reading: {said} on {node}"));
        }
        let victim = Victim::memfd(size)?;
        let said = as_nobody(
            &["capture-stdin", &path, "private"],
            victim.read_only.try_clone()?,
        )?;
        ensure!(said == "a frame", "private mapping, {node}: {said}");
        victim
            .is_untouched()
            .with_context(|| format!("private mapping, {node}"))?;
        // An address of ours, which means nothing in the helper.
        let here = kinds::anonymous(size, 0)?.context("memory")?;
        here.clear()?;
        let address = here.pointer().to_string();
        let said = as_nobody(&["capture-address", &path, &address], std::process::Stdio::null())?;
        ensure!(said == "QBUF EFAULT", "somebody else's address, {node}: {said}");
        here.is_clear()?;
        // A framebuffer that others may look at.
        for name in ["VESA VGA", "virtio_gpudrmfb"] {
            let seen = kinds::framebuffer(name, size, 0)?;
            seen.clear()?;
            let screen = File::open(kinds::framebuffer_path(name)?)?;
            let said = as_nobody(&["capture-stdin", &path, "shared"], screen)?;
            ensure!(said == "QBUF EFAULT", "{name}, {node}: {said}");
            seen.is_clear()?;
        }
    }
    figure(lines.join("; "));
    Ok(())
}

/// An object of which the client maps the first page only, with what comes behind it.
fn beyond() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let size = picture.bytes().len();
    let objects: &[(&str, Maker)] = &[
        ("memfd", kinds::sealed_memfd),
        ("vesafb", kinds::vesafb),
        ("virtio-gpu fb", kinds::virtio_gpu_fb),
        ("V4L2 vmalloc", kinds::v4l2_vmalloc),
        ("V4L2 contig", kinds::v4l2_contig),
        ("dumb", kinds::virtio_gpu_dumb),
        ("PCI memory", kinds::bar),
        ("heap", kinds::heap),
        ("udmabuf", kinds::udmabuf),
    ];
    for (what, make) in objects {
        for node in [ours(VMALLOC), ours(CONTIG)] {
            let Some(object) = make(size, 0)? else { continue };
            let context = |case: &str| format!("{what}, {case}, {node}");
            // One page of it, and nothing behind.
            object.clear()?;
            let first = Area::reserve(size)?;
            object.map_into(&first, PAGE)?;
            let said = helper::capture(&node.open()?, first.at(0))?;
            ensure!(said == "QBUF EFAULT", "{}: {said}", context("a page and nothing"));
            object.is_clear().with_context(|| context("a page and nothing"))?;
            // One page of it, and the client's own memory behind.
            let area = Area::reserve(size)?;
            object.map_into(&area, PAGE)?;
            area.map(PAGE, area.len() - PAGE, Source::Anonymous, Rights::ReadWrite)?;
            let video = node.open()?;
            let said = helper::capture(&video, area.at(0))?;
            if said != "QBUF EFAULT" {
                ensure!(said == "a frame", "{}: {said}", context("a page and others"));
                ensure!(
                    area.read(0, size)? == picture.bytes(),
                    "{}: not the frame",
                    context("a page and others")
                );
            }
            object
                .has_only_page(picture.bytes())
                .with_context(|| context("a page and others"))?;
        }
    }
    // A file shorter than its mapping: what is beyond its end is a signal for a program, and an errno for a kernel.
    for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
        let file = kinds::memfd_of(2 * PAGE, SealFlag::empty())?;
        let area = Area::reserve(size)?;
        area.map(0, size, Source::Shared(file.as_fd(), 0), Rights::ReadWrite)?;
        let said = helper::capture(&node.open()?, area.at(0))?;
        ensure!(
            said == "QBUF EFAULT" || (node.side == Side::Ours && said == "a damaged frame"),
            "beyond the end of a file, {node}: {said}"
        );
        ensure!(file.metadata()?.len() == 2 * PAGE as u64, "the file has grown");
        figure(format!("memory beyond the end of its file: {said} on {node}"));
    }
    Ok(())
}

/// A frame for pages of a private mapping that the client has not touched yet, which still are the object's.
fn private() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let size = picture.bytes().len();
    let mut tried = 0;
    for (kind, make) in KINDS {
        for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
            let Some(object) = make(size, 0)? else { continue };
            object.clear()?;
            let area = Area::reserve(size)?;
            // Many objects cannot be mapped so, or not more than a page of them.
            if object.map_privately_into(&area, area.len()).is_err() {
                if object.map_privately_into(&area, PAGE).is_err() {
                    continue;
                }
                area.map(PAGE, area.len() - PAGE, Source::Anonymous, Rights::ReadWrite)?;
            }
            tried += 1;
            let said = helper::capture(&node.open()?, area.at(0))?;
            let arrived = said == "a frame" && area.read(0, size)? == picture.bytes();
            ensure!(
                arrived || said == "QBUF EFAULT",
                "{kind}, {node}: {said}, arrived {arrived}"
            );
            object.is_clear().with_context(|| format!("{kind}, {node}"))?;
        }
    }
    // A memfd, two files, a framebuffer and PCI memory at least.
    ensure!(tried >= 5 * 3, "only {tried} private mappings");
    Ok(())
}

/// A picture from memory that the client cannot read.
fn unreadable() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    let size = 320 * 180 * 2;
    for (kind, make) in KINDS {
        for node in [real(number), ours(number)] {
            let Some(memory) = make(size, 0)? else { continue };
            memory.clear()?;
            let len = size.next_multiple_of(PAGE);
            for (at, part) in [(0, len), (len / 2 / PAGE * PAGE, PAGE)] {
                memory.area.protect(at, part, Rights::None)?;
                let came = frame_from(node, &memory)?;
                memory.area.protect(at, part, Rights::ReadWrite)?;
                // The real 6.1 reads what a program may not (FOLL_FORCE).
                ensure!(
                    came.is_none() || (is_6_1() && node == real(number)),
                    "{kind} without rights from {at} on, {node}: a picture"
                );
            }
        }
    }
    Ok(())
}

/// Some devices write to what they put out (`bidirectional` queues): they get a copy of what the client may only read.
fn only_read() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    let size = 320 * 180 * 2;
    let mut copied = 0;
    for (kind, make) in KINDS {
        let Some(memory) = make(size, 0)? else { continue };
        memory.clear()?;
        let len = size.next_multiple_of(PAGE);
        let imported = frame_from(ours(number), &memory)?;
        memory.area.protect(0, len, Rights::ReadOnly)?;
        let read_only = frame_from(ours(number), &memory)?;
        memory.area.protect(0, len, Rights::ReadWrite)?;
        if let Some((_, How::Imported, _)) = imported {
            let how = read_only.map(|(_, how, _)| how);
            ensure!(how == Some(How::Copied), "{kind}, read-only: {how:?}");
            copied += 1;
        }
    }
    ensure!(copied > 0, "nothing was imported to begin with");
    Ok(())
}

/// What a client does by turns, while another of its threads queues buffers.
fn race(node: Node, pointer: u64, size: usize, turn: impl Fn(usize) + Sync) -> anyhow::Result<Raced> {
    let (is_over, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut raced = Raced::default();
    let limit = Duration::from_millis(if is_long() { 20_000 } else { 500 });
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                turn(turns.fetch_add(1, Ordering::Relaxed));
            }
        });
        let streamed = node
            .open()
            .and_then(|video| stream_into(&video, pointer, size, limit, &mut raced));
        is_over.store(true, Ordering::Relaxed);
        streamed
    })?;
    raced.turns = turns.into_inner();
    ensure!(
        raced.turns > 10 && raced.frames + raced.lost + raced.refused > 10,
        "no race: {raced:?}"
    );
    Ok(raced)
}

/// What came of a race.
#[derive(Debug, Default)]
struct Raced {
    frames: usize,
    lost: usize,
    refused: usize,
    turns: usize,
}

/// At the pointer and a little behind it by turns, so that nothing that is remembered of the one serves the other.
fn stream_into(
    video: &Video,
    pointer: u64,
    size: usize,
    limit: Duration,
    raced: &mut Raced,
) -> anyhow::Result<()> {
    video.reqbufs(2)?;
    video.streamon()?;
    let end = Instant::now() + limit;
    for pointer in [pointer, pointer, pointer + 64].into_iter().cycle() {
        let now = Instant::now();
        let tries = raced.frames + raced.lost + raced.refused;
        if now > end && (tries > 10 || now > end + AT_ONCE) {
            break;
        }
        match video.qbuf(0, pointer, u32::try_from(size)?) {
            Ok(_) => {
                let done = video.dqbuf().context("DQBUF")?;
                match done.flags & buf_flag::ERROR {
                    0 => raced.frames += 1,
                    _ => raced.lost += 1,
                }
            }
            Err(Errno::EFAULT) => raced.refused += 1,
            Err(errno) => return Err(errno).context("QBUF"),
        }
    }
    Ok(())
}

fn remapped() -> anyhow::Result<()> {
    daemon::shared()?;
    let size = frame_size()?;
    let owns: &[(&str, Maker)] = &[
        ("anonymous", kinds::anonymous),
        ("memfd", kinds::sealed_memfd),
        ("heap", kinds::heap),
        ("vesafb", kinds::vesafb),
    ];
    for node in [ours(VMALLOC), ours(CONTIG)] {
        for (own, make) in owns {
            let Some(own_memory) = make(size + 64, 0)? else {
                continue;
            };
            for (what, victim) in Victim::all(size + 64)? {
                let area = Area::reserve(size + 64)?;
                let length = area.len();
                let theirs = Source::Shared(victim.read_only.as_fd(), 0);
                let turn = |number: usize| {
                    // Each can fail only for want of memory.
                    let _ = match number % 3 {
                        0 => own_memory.map_into(&area, length),
                        1 => area.map(0, length, theirs, Rights::ReadOnly),
                        _ => area.unmap(0, length),
                    };
                };
                let raced = race(node, area.at(0), size, turn)?;
                victim
                    .is_untouched()
                    .with_context(|| format!("{what} in turn with {own}, {node}"))?;
                figure(format!("{own} and another's {what} in turn, {node}: {raced:?}"));
            }
        }
    }
    Ok(())
}

fn renumbered() -> anyhow::Result<()> {
    daemon::shared()?;
    let size = frame_size()?;
    let Some(victim) = Victim::heap(size + 64)? else {
        // Without dma-bufs of its own a client has nothing to play with.
        return Ok(());
    };
    let null = File::open("/dev/null")?;
    for node in [ours(VMALLOC), ours(CONTIG)] {
        let own = DmaBuf::from_heap(size + 64)?;
        let area = Area::reserve(size + 64)?;
        area.map(0, area.len(), Source::Shared(own.as_fd(), 0), Rights::ReadWrite)?;
        // It always has one of these two numbers, or both.
        let numbers = [Slot::new(own.as_fd())?, Slot::new(victim.read_only.as_fd())?];
        drop(own);
        let turn = |number: usize| {
            let _ = match number % 4 {
                0 => numbers[1].put(&numbers[0]),
                1 => numbers[0].put(&victim.read_only),
                2 => numbers[0].put(&numbers[1]),
                _ => numbers[1].put(&null),
            };
        };
        let raced = race(node, area.at(0), size, turn)?;
        victim.is_untouched().with_context(|| node.to_string())?;
        figure(format!(
            "an fd that means another dma-buf in turn, {node}: {raced:?}"
        ));
    }
    Ok(())
}
