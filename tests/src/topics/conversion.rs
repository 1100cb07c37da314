//! Our conversion of a 32-bit client's structs against the kernel's own: the same ioctl on the same real node, once by
//! the kernel's entry for 32-bit programs, once converted by us and called as the 64-bit program that this is. What
//! comes back must be the same to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::ClientAbi::I386;
use vidcompat_proto::abi::compat::Layout;
use vidcompat_proto::abi::v4l2::{V4l2Format, V4l2RequestBuffers};
use vidcompat_proto::ioc::{Command, Direction};
use vidcompat_proto::ioctl::{Row, lookup_compat};
use zerocopy::FromZeros;

use super::errnos::word;
use crate::nodes::{self, Found, Kind};
use crate::report::figure;
use crate::setup::{Test, is_6_1};
use crate::sys::{self, PAGE, Pages};
use crate::video::{CAPTURE, Video, command, memory};

pub const TESTS: &[(&str, Test)] = &[
    ("conversion::any_bytes_on_every_kind_of_node", any_bytes),
    ("conversion::a_userptr_buffer_in_every_state", userptr_buffer),
    ("conversion::an_mmap_buffer_and_its_planes", planes),
    ("conversion::events", events),
];

/// What came of a call, and the client's bytes after it.
type Outcome = (Result<i32, Errno>, Vec<u8>);

/// An ioctl whose struct differs.
#[derive(Clone, Copy)]
struct Call {
    command: Command,
    row: &'static Row,
    layout: &'static Layout,
}

/// All of them: whatever number our table knows.
fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    for direction in [Direction::Write, Direction::Read, Direction::ReadWrite] {
        for (number, size) in (0..=255).flat_map(|number| (0..512).map(move |size| (number, size))) {
            let command = Command::new(direction, b'V', number, size);
            if let Some((row, Some(layout))) = lookup_compat(I386, command) {
                calls.push(Call { command, row, layout });
            }
        }
    }
    calls
}

/// Those of one name: one for each size of time.
fn calls_named(name: &str) -> anyhow::Result<Vec<Call>> {
    let mut calls = calls();
    calls.retain(|call| call.row.name == name);
    ensure!(calls.len() == 2, "{} layouts of {name}", calls.len());
    Ok(calls)
}

impl Call {
    fn by_the_kernel(&self, video: &Video, given: &[u8]) -> anyhow::Result<Outcome> {
        let pages = Pages::below_4g(PAGE)?;
        pages.write(0, given)?;
        let outcome = sys::ioctl32_in(video, self.command.0, &pages, 0);
        Ok((outcome, pages.read(0, given.len())?))
    }

    fn by_our_tables(&self, video: &Video, given: &[u8]) -> anyhow::Result<Outcome> {
        let mut native = vec![0; self.layout.native_size()];
        if let Err(errno) = self.layout.to_native(given, &mut native) {
            return Ok((Err(Errno::from_raw(errno.raw())), given.to_vec()));
        }
        let pages = Pages::new(PAGE)?;
        pages.write(0, &native)?;
        let outcome = sys::ioctl_in(video, self.row.command.0.into(), &pages, 0);
        let mut after = given.to_vec();
        if self.row.command.is_read() && (outcome.is_ok() || self.row.always_copy) {
            self.layout.from_native(&pages.read(0, native.len())?, &mut after);
        }
        Ok((outcome, after))
    }

    /// `None` if both are the same.
    fn difference(&self, given: &[u8], kernel: &Outcome, ours: &Outcome) -> Option<String> {
        let at = kernel
            .1
            .iter()
            .zip(&ours.1)
            .position(|(kernel, ours)| kernel != ours);
        if kernel.0 == ours.0 && at.is_none() {
            return None;
        }
        let near = at.unwrap_or_default() & !7..(at.unwrap_or_default() | 7).min(given.len() - 1) + 1;
        Some(format!(
            "{} of {} bytes, first difference {at:?}, near there:\n  given  {:02x?}\n  kernel {}, {:02x?}\n  ours   {}, {:02x?}",
            self.row.name,
            given.len(),
            &given[near.clone()],
            word(kernel.0),
            &kernel.1[near.clone()],
            word(ours.0),
            &ours.1[near]
        ))
    }

    /// Bytes that are unlike their neighbours, with zeroes among them for an even `seed`.
    fn bytes(&self, seed: usize) -> Vec<u8> {
        let noise = |at: usize| (at.wrapping_mul(37) + seed.wrapping_mul(101)).to_le_bytes()[0] | 1;
        (0..self.command.size())
            .map(|at| {
                if seed.is_multiple_of(2) && (at / 4).is_multiple_of(3) {
                    0
                } else {
                    noise(at)
                }
            })
            .collect()
    }
}

fn open(node: &Found) -> anyhow::Result<Video> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(node.real());
    file.map(Video).with_context(|| format!("open {node}"))
}

fn put(raw: &mut [u8], at: usize, word: u32) {
    raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
}

/// The input of a vivid, which goes back to the first one in the end.
struct Input(Video);

impl Input {
    fn choose(instance: u32, mut input: u32) -> anyhow::Result<Self> {
        let this = Self(open(&nodes::vivid(instance, Kind::VideoCapture)?)?);
        sys::ioctl(&this.0, command::S_INPUT, &mut input)?;
        Ok(this)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // A test that has failed already says more.
        let _ = sys::ioctl(&self.0, command::S_INPUT, &mut 0_u32);
    }
}

/// The formats of all types that this node has.
fn formats(video: &Video) -> Vec<V4l2Format> {
    let ask = |buf_type| {
        let mut format = V4l2Format::new_zeroed();
        format.buf_type = buf_type;
        sys::ioctl(video, command::G_FMT, &mut format).ok()?;
        Some(format)
    };
    (1..=14).filter_map(ask).collect()
}

fn any_bytes() -> anyhow::Result<()> {
    let (mut compared, mut good, mut wrong) = (0, BTreeMap::<_, BTreeSet<u32>>::new(), Vec::new());
    let calls = calls();
    // VBI wants a TV, metadata a webcam.
    for (instance, input) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
        let _input = Input::choose(instance, input)?;
        for kind in Kind::OF_VIVID {
            let node = nodes::vivid(instance, kind)?;
            let video = open(&node)?;
            let before = formats(&video);
            for call in &calls {
                let number = call.command.number();
                // These are followed to an array, which any bytes cannot name; and S_FBUF, which no client may call, has
                // a base that 6.1 takes and 6.12 does not.
                if matches!(number, 11 | 40 | 41 | 71..=73) {
                    continue;
                }
                for first in 0..17 {
                    let mut given = call.bytes((first + input) as usize);
                    // An index or a type, whatever there is first.
                    match number {
                        9 | 15 | 17 | 93 => put(&mut given, 4, first),
                        // No buffers: only what they would have to hold.
                        92 => {
                            put(&mut given, 4, 0);
                            put(&mut given, 8, memory::MMAP);
                            put(&mut given, 12, first);
                        }
                        _ => put(&mut given, 0, first),
                    }
                    // No clips and no bitmap in a window: 6.1 would look for them.
                    match number {
                        4 | 5 | 64 if matches!(first, 3 | 8) => given[28..40].fill(0),
                        92 if matches!(first, 3 | 8) => given[40..52].fill(0),
                        // Metadata has a width since 6.10; before, these 12 bytes stay the client's, and ours are zero.
                        4 | 5 | 64 if is_6_1() && matches!(first, 13 | 14) => given[12..24].fill(0),
                        92 if is_6_1() && matches!(first, 13 | 14) => given[24..36].fill(0),
                        _ => {}
                    }
                    let kernel = call.by_the_kernel(&video, &given)?;
                    let ours = call.by_our_tables(&video, &given)?;
                    compared += 1;
                    if kernel.0.is_ok() {
                        good.entry(call.row.name).or_default().insert(first);
                    }
                    wrong.extend(
                        call.difference(&given, &kernel, &ours)
                            .map(|difference| format!("{node}: {difference}")),
                    );
                }
            }
            for mut format in before {
                sys::ioctl(&video, command::S_FMT, &mut format)?;
            }
        }
    }
    figure(format!("{compared} calls compared, good among them: {good:?}"));
    ensure!(
        wrong.is_empty(),
        "{} differ, the first:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    // Every type but overlays, which want a framebuffer, and SDR output, which vivid has not.
    let types = BTreeSet::from([1, 2, 4, 5, 6, 7, 9, 10, 11, 13, 14]);
    for name in ["VIDIOC_G_FMT", "VIDIOC_S_FMT", "VIDIOC_TRY_FMT"] {
        ensure!(
            good.get(name).is_some_and(|good| good.is_superset(&types)),
            "{name} of some types never came to anything"
        );
    }
    for name in ["VIDIOC_ENUMSTD", "VIDIOC_ENUMINPUT", "VIDIOC_CREATE_BUFS"] {
        ensure!(good.contains_key(name), "{name} never came to anything");
    }
    Ok(())
}

fn reqbufs(video: &Video, count: u32, buf_type: u32, memory: u32) -> anyhow::Result<()> {
    let mut request = V4l2RequestBuffers {
        count,
        buf_type,
        memory,
        ..V4l2RequestBuffers::default()
    };
    Ok(video.reqbufs_raw(&mut request)?)
}

fn compare(call: &Call, given: &[u8], kernel: &Outcome, ours: &Outcome) -> anyhow::Result<()> {
    ensure!(kernel.0.is_ok(), "{}: {}", call.row.name, word(kernel.0));
    call.difference(given, kernel, ours)
        .map_or(Ok(()), |difference| bail!("{difference}"))
}

fn userptr_buffer() -> anyhow::Result<()> {
    let video = open(&nodes::vivid(0, Kind::VideoCapture)?)?;
    let size = video.sizeimage()?;
    let frame = Pages::below_4g(size as usize)?;
    let pointer = u32::try_from(frame.at(0))?;
    reqbufs(&video, 1, CAPTURE, memory::USERPTR)?;

    for name in ["VIDIOC_PREPARE_BUF", "VIDIOC_QBUF", "VIDIOC_QUERYBUF"] {
        for call in calls_named(name)? {
            let mut given = call.bytes(1);
            put(&mut given, 0, 0);
            put(&mut given, 4, CAPTURE);
            put(&mut given, 12, 0);
            // From `memory` on the layouts are the same, seen from the end.
            let end = given.len();
            put(&mut given, end - 20, memory::USERPTR);
            put(&mut given, end - 16, pointer);
            put(&mut given, end - 12, size);
            // STREAMOFF gives back what was queued or prepared.
            video.streamoff()?;
            let kernel = call.by_the_kernel(&video, &given)?;
            video.streamoff()?;
            let ours = call.by_our_tables(&video, &given)?;
            compare(&call, &given, &kernel, &ours)?;
        }
    }

    // One with a time, whose struct no longer changes.
    video.streamoff()?;
    video.qbuf(0, frame.at(0), size)?;
    video.streamon()?;
    video.poll(nix::poll::PollFlags::POLLIN, 5000)?;
    let dequeued = video.dqbuf()?;
    ensure!(
        dequeued.timestamp[0] > 0 && dequeued.timestamp[1] > 0,
        "{dequeued:?}"
    );
    for call in calls_named("VIDIOC_QUERYBUF")? {
        let mut given = call.bytes(1);
        put(&mut given, 0, 0);
        put(&mut given, 4, CAPTURE);
        let kernel = call.by_the_kernel(&video, &given)?;
        let ours = call.by_our_tables(&video, &given)?;
        compare(&call, &given, &kernel, &ours)?;
        let end = kernel.1.len();
        ensure!(
            kernel.1[end - 16..end - 12] == pointer.to_ne_bytes(),
            "no pointer"
        );
        let seconds = u32::try_from(dequeued.timestamp[0])?;
        ensure!(kernel.1[20..24] == seconds.to_ne_bytes(), "no time");
    }
    Ok(())
}

fn planes() -> anyhow::Result<()> {
    const MPLANE: u32 = vidcompat_proto::abi::v4l2::buf_type::VIDEO_CAPTURE_MPLANE;
    let video = open(&nodes::vivid(1, Kind::VideoCapture)?)?;
    reqbufs(&video, 2, MPLANE, memory::MMAP)?;
    for call in calls_named("VIDIOC_QUERYBUF")? {
        let plane = call.layout.element().context("planes differ")?;
        let (narrow, wide) = (plane.compat_size(), plane.native_size());
        let (kernel_planes, our_planes) = (Pages::below_4g(PAGE)?, Pages::below_4g(PAGE)?);
        let garbage = vec![0xa5; 8 * narrow];
        let mut given = call.bytes(1);
        put(&mut given, 0, 1);
        put(&mut given, 4, MPLANE);
        let end = given.len();
        put(&mut given, end - 20, memory::MMAP);
        put(&mut given, end - 12, 8);

        put(&mut given, end - 16, u32::try_from(kernel_planes.at(0))?);
        kernel_planes.write(0, &garbage)?;
        let mut kernel = call.by_the_kernel(&video, &given)?;

        put(&mut given, end - 16, u32::try_from(our_planes.at(0))?);
        for (at, from) in garbage.chunks_exact(narrow).enumerate() {
            let mut native = vec![0; wide];
            let converted = plane.to_native(from, &mut native);
            ensure!(converted.is_ok(), "a plane has no type");
            our_planes.write(at * wide, &native)?;
        }
        let ours = call.by_our_tables(&video, &given)?;

        // Each has its own pointer.
        ensure!(kernel.1[end - 16..end - 12] == u32::try_from(kernel_planes.at(0))?.to_ne_bytes());
        kernel.1[end - 16..end - 12].copy_from_slice(&given[end - 16..end - 12]);
        compare(&call, &given, &kernel, &ours)?;
        // Eight were announced; as many as the driver has are given back.
        let has = ours.1[end - 12];
        ensure!((1..8).contains(&has), "{has} planes");
        let mut converted = garbage;
        for (at, to) in converted.chunks_exact_mut(narrow).take(has.into()).enumerate() {
            plane.from_native(&our_planes.read(at * wide, wide)?, to);
        }
        let by_kernel = kernel_planes.read(0, converted.len())?;
        ensure!(
            by_kernel == converted,
            "planes:\n{by_kernel:02x?}\n{converted:02x?}"
        );
        ensure!(by_kernel[8..12] != [0; 4], "no offset: {by_kernel:02x?}");
    }
    reqbufs(&video, 0, MPLANE, memory::MMAP)
}

fn events() -> anyhow::Result<()> {
    const SUBSCRIBE_EVENT: u64 = 0x4020_565a;
    let node = nodes::vivid(0, Kind::VideoCapture)?;
    for call in calls_named("VIDIOC_DQEVENT")? {
        // Type: a control; id: brightness; flags: an event at once.
        let mut subscription = [3u32, 0x0098_0900, 1, 0, 0, 0, 0, 0];
        let (first, second) = (open(&node)?, open(&node)?);
        for video in [&first, &second] {
            sys::ioctl(video, SUBSCRIBE_EVENT, &mut subscription)?;
        }
        let given = call.bytes(1);
        let mut kernel = call.by_the_kernel(&first, &given)?;
        let mut ours = call.by_our_tables(&second, &given)?;
        // Two events, of nearly the same time.
        let len = (call.command.size() - 112) / 2;
        let number = |raw: &[u8], at: usize| -> u64 {
            raw[at..at + len]
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (seconds, later) = (number(&kernel.1, 76), number(&ours.1, 76));
        ensure!(
            seconds > 0 && (0..30).contains(&later.saturating_sub(seconds)),
            "{seconds}, {later}"
        );
        for outcome in [&mut kernel, &mut ours] {
            ensure!(number(&outcome.1, 76 + len) < 1_000_000_000, "{:02x?}", outcome.1);
            outcome.1[76..76 + 2 * len].fill(0);
        }
        compare(&call, &given, &kernel, &ours)?;
    }
    Ok(())
}
