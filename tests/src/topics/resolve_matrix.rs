//! Every kind of memory as USERPTR, on a queue of each kind: what the real node says, what ours says, and how ours
//! serves it. What counts is the bytes that the client then sees through its own pointer.

use std::fmt;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2RequestBuffers, buf_flag, buf_type};

use crate::daemon;
use crate::kinds::{self, Maker, Memory};
use crate::nodes::named;
use crate::picture::Picture;
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC, both_real, is_6_1};
use crate::status;
use crate::sys::{self, PAGE, Pages};
use crate::video::{Node, Side, Video, command, memory, ours, real};

/// For the set with everything.
pub const TESTS: &[(&str, Test)] = &[
    ("resolve_matrix::a_frame_arrives_in_every_kind_of_memory", || {
        capture(ROWS)
    }),
    (
        "resolve_matrix::a_frame_is_taken_from_every_kind_of_memory",
        output,
    ),
    (
        "resolve_matrix::a_frame_arrives_at_every_alignment_of_malloc",
        alignments,
    ),
];

/// For the one with bochs.
pub const BOCHS: &[(&str, Test)] = &[("resolve_matrix::a_frame_arrives_in_the_memory_of_bochs", || {
    capture(BOCHS_ROWS)
})];

/// What becomes of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Its bytes are right, in whatever way: of real nodes no more is known.
    Served,
    /// Its bytes are right: the device has it, without a copy.
    Imported,
    /// Its bytes are right, by a copy.
    Copied,
    /// QBUF says EFAULT, and nothing is written.
    Fault,
}

use How::{Copied, Fault, Imported, Served};

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Served => "ok",
            Imported => "ok, imported",
            Copied => "ok, copied",
            Fault => "EFAULT",
        })
    }
}

/// What is expected where there is such memory.
struct Expected {
    /// The real node, vmalloc. (The one with dma-contig takes no USERPTR.)
    native: How,
    vmalloc: How,
    contig: How,
    /// As source of a picture: the real vim2m.
    native_output: How,
    output: How,
}

const fn expect(native: How, vmalloc: How, contig: How, native_output: How, output: How) -> Option<Expected> {
    Some(Expected {
        native,
        vmalloc,
        contig,
        native_output,
        output,
    })
}

/// Plain memory: it worked and works.
const PLAIN: Option<Expected> = expect(Served, Copied, Copied, Served, Copied);
/// It is EFAULT on a real node, and copied on ours.
const ONLY_BY_COPY: Option<Expected> = expect(Fault, Copied, Copied, Fault, Copied);
/// It is EFAULT on a real node, and imported where a queue takes scattered memory.
const BY_IMPORT: Option<Expected> = expect(Fault, Imported, Copied, Fault, Imported);
/// The same without a heap, by which a queue could be tried beforehand: what dma-contig makes of it depends on where its
/// pages happen to lie.
const BY_IMPORT_6_1: Option<Expected> = expect(Fault, Imported, Served, Fault, Imported);
/// It is EFAULT everywhere.
const NOT_AT_ALL: Option<Expected> = expect(Fault, Fault, Fault, Fault, Fault);

struct Row {
    kind: &'static str,
    make: Maker,
    /// Bytes of it before the frame.
    at: usize,
    on_6_1: Option<Expected>,
    on_6_12: Option<Expected>,
    why: &'static str,
}

const fn row(
    kind: &'static str,
    make: Maker,
    at: usize,
    on_6_1: Option<Expected>,
    on_6_12: Option<Expected>,
    why: &'static str,
) -> Row {
    Row {
        kind,
        make,
        at,
        on_6_1,
        on_6_12,
        why,
    }
}

const INSIDE: usize = PAGE + 64;

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("malloc, small", kinds::heap_of_malloc, 0, PLAIN, PLAIN, ""),
    row("malloc, large", kinds::malloc, 1, PLAIN, PLAIN, ""),
    row("anonymous", kinds::anonymous, 0, PLAIN, PLAIN, ""),
    row("anonymous, shared", kinds::shared_anonymous, INSIDE, PLAIN, PLAIN, ""),
    row("two mappings", kinds::two_mappings, 0, PLAIN, PLAIN, ""),
    row("huge pages", kinds::huge, INSIDE, PLAIN, PLAIN, ""),
    row("read-only", kinds::read_only, 0,
        expect(Served, Fault, Fault, Served, Copied), expect(Fault, Fault, Fault, Served, Copied),
        "6.1 writes to what a program may only read (FOLL_FORCE); since 6.2 no kernel does, and we never"),
    row("memfd", kinds::memfd, 0, PLAIN, PLAIN, ""),
    row("memfd, sealed", kinds::sealed_memfd, 0, PLAIN, PLAIN, "an import would pin the client's pages"),
    row("memfd, closed", kinds::closed_memfd, 0, PLAIN, PLAIN, ""),
    row("memfd of huge pages", kinds::huge_memfd, 0, PLAIN, PLAIN, ""),
    row("file, shared (tmpfs)", kinds::shared_file, 0, PLAIN, PLAIN, ""),
    row("file, private", kinds::private_file, INSIDE, PLAIN, PLAIN, ""),
    row("vfb", kinds::vfb, 0, PLAIN, PLAIN, "struct pages without dirty tracking"),
    row("vfb, private", kinds::private_vfb, 0, PLAIN, PLAIN, "pages of the program's own, after the first write"),
    row("vesafb", kinds::vesafb, 0, ONLY_BY_COPY, ONLY_BY_COPY, "I/O memory of a fixed address"),
    row("vesafb, inside", kinds::vesafb, 40 * PAGE + 100, ONLY_BY_COPY, ONLY_BY_COPY, ""),
    row("vesafb, closed", kinds::closed_vesafb, 0, ONLY_BY_COPY, ONLY_BY_COPY, "the mapping leads to it"),
    row("half anonymous, half vesafb", kinds::half_vesafb, 0, ONLY_BY_COPY, ONLY_BY_COPY, ""),
    row("virtio-gpu fb", kinds::virtio_gpu_fb, 0,
        expect(Served, Copied, Copied, Served, Copied), expect(Fault, Imported, Copied, Served, Imported),
        "6.1 maps a shadow; 6.12 the object itself, and refuses to pin what it must track (6.5)"),
    row("virtio-gpu fb, inside", kinds::virtio_gpu_fb, 40 * PAGE + 100,
        expect(Served, Copied, Copied, Served, Copied), expect(Fault, Copied, Copied, Served, Copied),
        "no driver begins inside a dma-buf"),
    row("virtio-gpu fb, closed", kinds::closed_virtio_gpu_fb, 0,
        expect(Served, Copied, Copied, Served, Copied), expect(Fault, Imported, Copied, Served, Imported), ""),
    row("PCI memory", kinds::bar, 0, ONLY_BY_COPY, ONLY_BY_COPY, "no driver, no struct pages"),
    row("PCI memory, private", kinds::private_bar, 0,
        expect(Served, Fault, Fault, Served, Fault), expect(Served, Fault, Fault, Served, Fault),
        "pages of the program's own once it has written; process_vm_writev goes by the mapping and refuses"),
    row("V4L2 buffer, vmalloc", kinds::v4l2_vmalloc, 0,
        expect(Served, Imported, Served, Served, Imported), expect(Served, Imported, Copied, Served, Imported), ""),
    row("V4L2 buffer, vmalloc, of four", kinds::v4l2_vmalloc_several, 0,
        expect(Served, Imported, Served, Served, Imported), expect(Served, Imported, Copied, Served, Imported),
        ""),
    row("V4L2 buffer, vmalloc, inside", kinds::v4l2_vmalloc, INSIDE, PLAIN, PLAIN, ""),
    row("V4L2 buffer, vmalloc, closed", kinds::closed_v4l2_vmalloc, 0, PLAIN, PLAIN, ""),
    row("V4L2 buffer, dma-contig", kinds::v4l2_contig, 0,
        expect(Fault, Imported, Imported, Fault, Imported), expect(Fault, Imported, Imported, Fault, Imported), ""),
    row("V4L2 buffer, dma-contig, inside", kinds::v4l2_contig, INSIDE, ONLY_BY_COPY, ONLY_BY_COPY, ""),
    row("V4L2 buffer, dma-contig, of four", kinds::v4l2_contig_several, 0,
        expect(Fault, Imported, Imported, Fault, Imported), expect(Fault, Imported, Imported, Fault, Imported), ""),
    row("V4L2 buffer, dma-contig, closed", kinds::closed_v4l2_contig, 0, NOT_AT_ALL, NOT_AT_ALL,
        "there is no file left that leads to it"),
    row("virtio-gpu dumb", kinds::virtio_gpu_dumb, 0, BY_IMPORT_6_1, BY_IMPORT, ""),
    row("virtio-gpu dumb, inside", kinds::virtio_gpu_dumb, INSIDE, ONLY_BY_COPY, ONLY_BY_COPY, ""),
    row("virtio-gpu dumb, closed", kinds::closed_virtio_gpu_dumb, 0, NOT_AT_ALL, NOT_AT_ALL,
        "there is no file left that leads to it"),
    row("virtio-gpu PRIME", kinds::virtio_gpu_prime, 0, BY_IMPORT_6_1, BY_IMPORT, ""),
    row("system heap", kinds::heap, 0, None, BY_IMPORT, ""),
    row("system heap, no page more", kinds::tight_heap, 0, None, BY_IMPORT, ""),
    row("system heap, inside", kinds::heap, INSIDE, None, ONLY_BY_COPY, "no driver begins inside a dma-buf"),
    row("system heap, from its second page", kinds::heap_from_second_page, 0, None, ONLY_BY_COPY, ""),
    row("system heap, closed", kinds::closed_heap, 0, None, NOT_AT_ALL, "there is no file left that leads to it"),
    row("half anonymous, half system heap", kinds::half_heap, 0, None, ONLY_BY_COPY, ""),
    row("two dma-bufs", kinds::two_heaps, INSIDE, None, ONLY_BY_COPY, ""),
    row("udmabuf", kinds::udmabuf, 0, None, expect(Fault, Imported, Copied, Fault, Copied),
        "6.12 reads other pages of it, if it has huge ones, and nobody would see that"),
];

#[rustfmt::skip]
const BOCHS_ROWS: &[Row] = &[
    row("bochs fb", kinds::bochs_fb, 0,
        expect(Served, Copied, Copied, Served, Copied), expect(Fault, Copied, Copied, Served, Copied),
        "a shadow of the video memory, which it is copied to later"),
    row("bochs fb, inside", kinds::bochs_fb, 40 * PAGE + 100,
        expect(Served, Copied, Copied, Served, Copied), expect(Fault, Copied, Copied, Served, Copied), ""),
    row("bochs dumb", kinds::bochs_dumb, 0, ONLY_BY_COPY, ONLY_BY_COPY, "video memory"),
    row("bochs PRIME", kinds::bochs_prime, 0, None, ONLY_BY_COPY,
        "video memory is never imported: kernel BUG at dma-buf.c:1593"),
];

impl Row {
    fn expected(&self) -> Option<&Expected> {
        if is_6_1() {
            self.on_6_1.as_ref()
        } else {
            self.on_6_12.as_ref()
        }
    }

    /// The memory, or nothing where none is expected.
    fn memory(&self, size: usize) -> anyhow::Result<Option<(Memory, &Expected)>> {
        let made = (self.make)(size, self.at).with_context(|| format!("{}: cannot be made", self.kind))?;
        match (made, self.expected()) {
            (Some(memory), Some(expected)) => Ok(Some((memory, expected))),
            (None, None) => Ok(None),
            (made, _) => {
                bail!(
                    "{}: this kernel has it: {}, unlike expected",
                    self.kind,
                    made.is_some()
                )
            }
        }
    }
}

/// One frame into this memory: what became of it. An error is what must be nowhere.
fn frame_into(node: Node, memory: &Memory, picture: &[u8]) -> anyhow::Result<(How, String)> {
    let video = node.open()?;
    video.reqbufs(2)?;
    memory.clear()?;
    let size = u32::try_from(memory.size)?;
    match video.qbuf(0, memory.pointer(), size) {
        Err(Errno::EFAULT) => {
            memory.is_clear()?;
            return Ok((Fault, String::new()));
        }
        queued => queued.context("QBUF")?,
    };
    video.streamon().context("STREAMON")?;
    // The same pointer twice: what is remembered must do as well.
    for _ in 0..2 {
        let done = video.dqbuf().context("DQBUF")?;
        ensure!(
            done.m == memory.pointer() && done.length == size && done.flags & buf_flag::ERROR == 0,
            "{done:?}"
        );
        memory.holds(picture)?;
        memory.clear()?;
        video.qbuf(0, memory.pointer(), size).context("QBUF once more")?;
    }
    let how = how_on(node, "video capture")?;
    video.dqbuf().context("DQBUF")?;
    memory.holds(picture)?;
    video.streamoff()?;
    Ok(how)
}

/// Of a real node it is not known.
fn how_on(node: Node, buf_type: &str) -> anyhow::Result<(How, String)> {
    if node.side == Side::Real || both_real() {
        return Ok((Served, String::new()));
    }
    let plane = status::of_buffer(node, buf_type)?;
    let (how, counted, not_counted) = match plane.how {
        status::How::Imported | status::How::Adopted => (Imported, "imported", "copied"),
        status::How::Copied => (Copied, "copied", "imported"),
    };
    ensure!(
        plane.counter(counted) > 0 && plane.counter(not_counted) == 0,
        "it is said to be {counted}, but counted otherwise: {plane:?}"
    );
    Ok((how, plane.told))
}

/// `outcome` for the table, and what is wrong with it for the list.
fn judge(
    what: &str,
    outcome: anyhow::Result<(How, String)>,
    expected: How,
    failures: &mut Vec<String>,
) -> String {
    match outcome {
        Ok((how, _)) if how == expected || (how != Fault && (expected == Served || both_real())) => {
            how.to_string()
        }
        Ok((how, told)) => {
            failures.push(format!("{what}: {how} ({told}), expected {expected}"));
            how.to_string()
        }
        Err(error) => {
            failures.push(format!("{what}: {error:#}; expected {expected}"));
            "wrong".to_owned()
        }
    }
}

/// Fails if there are any, and shows the first.
pub(super) fn fail_with(failures: &[String]) -> anyhow::Result<()> {
    ensure!(
        failures.is_empty(),
        "{} are wrong:\n  {}",
        failures.len(),
        failures[..failures.len().min(40)].join("\n  ")
    );
    Ok(())
}

fn capture(rows: &[Row]) -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let native_contig = real(CONTIG).open()?.reqbufs(2);
    ensure!(
        native_contig == Err(Errno::EINVAL),
        "the real dma-contig node takes USERPTR: {native_contig:?}"
    );
    figure(format!(
        "{:<34} | {:<8} | {:<14} | {:<14} | {:<14}",
        "CAPTURE into", "vmalloc", "dma-contig", "ours, vmalloc", "ours, contig"
    ));
    let mut failures = vec![];
    for row in rows {
        let mut cells = vec![];
        for (name, node) in [
            ("real, vmalloc", real(VMALLOC)),
            ("ours, vmalloc", ours(VMALLOC)),
            ("ours, dma-contig", ours(CONTIG)),
        ] {
            let what = format!("{}, {name}", row.kind);
            let Some((memory, expected)) = row.memory(picture.bytes().len())? else {
                continue;
            };
            let expected = match name {
                "real, vmalloc" => expected.native,
                "ours, vmalloc" => expected.vmalloc,
                _ => expected.contig,
            };
            let outcome = frame_into(node, &memory, picture.bytes());
            cells.push(judge(&what, outcome, expected, &mut failures));
        }
        if let [native, vmalloc, contig] = &cells[..] {
            figure(format!(
                "{:<34} | {native:<8} | REQBUFS EINVAL | {vmalloc:<14} | {contig:<14} {}",
                row.kind, row.why
            ));
        }
    }
    fail_with(&failures)
}

// ---- the other direction

fn queue_buffer(buf_type: u32, pointer: u64, length: u32) -> V4l2Buffer {
    V4l2Buffer {
        index: 0,
        buf_type,
        memory: memory::USERPTR,
        m: pointer,
        length,
        bytesused: length,
        // V4L2_FIELD_NONE
        field: 1,
        ..V4l2Buffer::default()
    }
}

/// Sets both queues of a new file of vim2m up, for pictures of `320x180` pixels of two bytes.
fn set_up(node: Node) -> anyhow::Result<Video> {
    let video = node.open()?;
    for buf_type in [buf_type::VIDEO_OUTPUT, buf_type::VIDEO_CAPTURE] {
        let mut format = video.format_of(buf_type)?;
        // struct v4l2_pix_format: width, height, pixelformat
        format.fmt[0..4].copy_from_slice(&320_u32.to_ne_bytes());
        format.fmt[4..8].copy_from_slice(&180_u32.to_ne_bytes());
        format.fmt[8..12].copy_from_slice(b"RGBP");
        let format = video.set_format(format)?;
        ensure!(
            format.pix_sizeimage() == 320 * 180 * 2,
            "{} bytes",
            format.pix_sizeimage()
        );
        let mut request = V4l2RequestBuffers {
            count: 1,
            buf_type,
            memory: memory::USERPTR,
            ..V4l2RequestBuffers::default()
        };
        video.reqbufs_raw(&mut request).context("REQBUFS")?;
    }
    Ok(video)
}

/// One picture from this memory through vim2m: what came out of it, or EFAULT.
pub(super) fn frame_from(node: Node, memory: &Memory) -> anyhow::Result<Option<(Vec<u8>, How, String)>> {
    let video = set_up(node)?;
    let size = u32::try_from(memory.size)?;
    let converted = Pages::new(memory.size)?;
    let output = queue_buffer(buf_type::VIDEO_OUTPUT, memory.pointer(), size);
    match video.on_buffer(command::QBUF, output) {
        Err(Errno::EFAULT) => return Ok(None),
        queued => queued.context("QBUF of the picture")?,
    };
    let capture = queue_buffer(buf_type::VIDEO_CAPTURE, converted.at(0), size);
    video.on_buffer(command::QBUF, capture).context("QBUF")?;
    for mut buf_type in [buf_type::VIDEO_OUTPUT, buf_type::VIDEO_CAPTURE] {
        sys::ioctl(&video, command::STREAMON, &mut buf_type).context("STREAMON")?;
    }
    let done = video.on_buffer(command::DQBUF, capture).context("DQBUF")?;
    let given_back = video.on_buffer(command::DQBUF, output).context("DQBUF")?;
    ensure!(
        done.flags & buf_flag::ERROR == 0
            && given_back.flags & buf_flag::ERROR == 0
            && given_back.m == memory.pointer(),
        "{done:?}, {given_back:?}"
    );
    let (how, told) = how_on(node, "video output")?;
    Ok(Some((converted.read(0, memory.size)?, how, told)))
}

fn output() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    let size = 320 * 180 * 2;
    // Neither even nor periodic; cut to eight bits on purpose.
    let source: Vec<u8> = (0..size)
        .map(|at: usize| (at * at / 7 + at / 640).to_le_bytes()[0])
        .collect();
    let plain = kinds::anonymous(size, 0)?.context("anonymous memory")?;
    plain.fill(&source)?;
    let (right, ..) = frame_from(real(number), &plain)?.context("EFAULT of plain memory")?;
    ensure!(
        right.iter().any(|byte| *byte != right[0]),
        "vim2m made nothing of the picture"
    );
    drop(plain);
    figure(format!("{:<34} | {:<8} | {:<14}", "OUTPUT from", "vim2m", "ours"));
    let mut failures = vec![];
    for row in ROWS {
        let mut cells = vec![];
        for (name, node) in [("real", real(number)), ("ours", ours(number))] {
            let what = format!("{}, {name}", row.kind);
            let Some((memory, expected)) = row.memory(size)? else {
                continue;
            };
            let expected = match name {
                "real" => expected.native_output,
                _ => expected.output,
            };
            memory.fill(&source)?;
            let outcome = frame_from(node, &memory).and_then(|came| {
                memory.holds(&source).context("the source")?;
                match came {
                    None => Ok((Fault, String::new())),
                    Some((bytes, how, told)) => {
                        let differing = bytes.iter().zip(&right).position(|(a, b)| a != b);
                        ensure!(differing.is_none(), "differs from byte {differing:?} on");
                        Ok((how, told))
                    }
                }
            });
            cells.push(judge(&what, outcome, expected, &mut failures));
        }
        if let [native, served] = &cells[..] {
            figure(format!("{:<34} | {native:<8} | {served:<14}", row.kind));
        }
    }
    fail_with(&failures)
}

// ---- malloc

/// Every alignment within a line of the cache, and some beyond; every length that a driver takes.
fn alignments() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let size = picture.bytes().len();
    let far = [
        127, 255, 256, 511, 513, 1023, 1024, 2047, 2049, 4000, 4080, 4094, 4095,
    ];
    let mut failures = vec![];
    for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
        let video = node.open()?;
        video.reqbufs(2)?;
        video.streamon()?;
        for (number, at) in (0..=64).chain(far).enumerate() {
            let make: Maker = if number % 2 == 0 {
                kinds::heap_of_malloc
            } else {
                kinds::malloc
            };
            let memory = make(size, at)?.context("malloc")?;
            memory.clear()?;
            let more = if number % 2 == 0 {
                0
            } else {
                [0, 1, PAGE, 200_000][number / 2 % 4]
            };
            let length = u32::try_from(size + more)?;
            let came = video
                .qbuf(0, memory.pointer(), length)
                .and_then(|_| video.dqbuf());
            let right = came.map_err(Into::into).and_then(|done| {
                ensure!(done.m == memory.pointer() && done.length == length, "{done:?}");
                memory.holds(picture.bytes())
            });
            if let Err(error) = right {
                failures.push(format!("{node}: {at} of malloc, length {length}: {error:#}"));
            }
        }
    }
    fail_with(&failures)
}
