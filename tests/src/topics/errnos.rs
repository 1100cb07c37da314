//! One call at a time, right and wrong, on the real node and on ours: the same errno, and the same struct back.
//!
//! Each case begins with a freshly opened node. Where ours must answer otherwise, the case says what both sides
//! answer, and why.

use std::fmt::Write;

use anyhow::ensure;
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2CreateBuffers, V4l2RequestBuffers, buf_cap};
use zerocopy::FromZeros;

use super::cases;
use crate::daemon;
use crate::report::figure;
use crate::setup::{Test, VMALLOC, is_6_1};
use crate::sys::{self, PAGE, Pages};
use crate::video::{CAPTURE, Node, Video, command, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("errnos::qbuf_and_prepare_buf_of_good_and_bad_buffers", || {
        compare(cases::GIVING)
    }),
    (
        "errnos::reqbufs_and_create_bufs_of_any_count_type_and_memory",
        || compare(cases::ALLOCATING),
    ),
    (
        "errnos::dqbuf_querybuf_streamon_and_streamoff_in_every_state",
        || compare(cases::STREAMING),
    ),
    ("errnos::calls_on_a_queue_that_another_file_owns", || {
        compare(cases::SECOND_FILE)
    }),
    ("errnos::unknown_and_malformed_ioctls", || {
        compare(cases::MALFORMED)
    }),
    (
        "errnos::capabilities_are_the_drivers_without_what_cuse_cannot_do",
        capabilities,
    ),
];

/// A node for one case, and memory for two buffers and more.
pub struct Bench {
    pub node: Node,
    pub video: Video,
    /// `sizeimage`
    pub size: u32,
    /// Room for three buffers.
    pub pages: Pages,
}

impl Bench {
    pub fn new(node: Node) -> anyhow::Result<Self> {
        let video = node.open()?;
        let size = video.sizeimage()?;
        let pages = Pages::new(3 * (size as usize).next_multiple_of(PAGE))?;
        Ok(Self {
            node,
            video,
            size,
            pages,
        })
    }

    /// A good buffer 0.
    pub fn good(&self) -> V4l2Buffer {
        crate::video::buffer(0, self.pages.at(0), self.size)
    }

    /// QBUF after REQBUFS of two.
    pub fn qbuf(&self, change: impl FnOnce(&mut V4l2Buffer)) -> String {
        self.give(command::QBUF, change)
    }

    /// QBUF or PREPARE_BUF after REQBUFS of two; what it says, and what QUERYBUF says afterwards.
    pub fn give(&self, command: u64, change: impl FnOnce(&mut V4l2Buffer)) -> String {
        let mut buffer = self.good();
        change(&mut buffer);
        let reqbufs = self.video.reqbufs(2);
        let given = self.video.on_buffer(command, buffer);
        format!(
            "{} {}, then {}",
            word(reqbufs),
            self.show(given),
            self.show(self.video.querybuf(0))
        )
    }

    /// A buffer as it came back. Pointers are relative to our memory, whose address differs.
    pub fn show(&self, outcome: Result<V4l2Buffer, Errno>) -> String {
        let b = match outcome {
            Err(errno) => return format!("{errno:?}"),
            Ok(buffer) => buffer,
        };
        let start = self.pages.at(0);
        let m = match b.m {
            0 => "0".to_owned(),
            m if m >= start && m < self.pages.at(self.pages.len()) => format!("pages+{:#x}", m - start),
            m => format!("{m:#x}"),
        };
        let mut text = format!(
            "ok[index {} type {} bytesused {} flags {:#x} field {} memory {} m {m} length {} request_fd {} reserved2 {}",
            b.index, b.buf_type, b.bytesused, b.flags, b.field, b.memory, b.length, b.request_fd, b.reserved2
        );
        if b.timecode != [0; 16] {
            // Writing to a String cannot fail.
            let _ = write!(text, " timecode {:?}", b.timecode);
        }
        text.push(']');
        text
    }

    /// REQBUFS with all fields as given, and the struct as it came back.
    pub fn reqbufs(&self, mut request: V4l2RequestBuffers) -> String {
        let outcome = word(self.video.reqbufs_raw(&mut request));
        format!(
            "{outcome}[count {} type {} memory {} flags {:#x} reserved {:?}]",
            request.count, request.buf_type, request.memory, request.flags, request.reserved
        )
    }

    /// CREATE_BUFS for the present format, changed, and the struct as it came back.
    pub fn create(&self, count: u32, change: impl FnOnce(&mut V4l2CreateBuffers)) -> String {
        let mut request = V4l2CreateBuffers::new_zeroed();
        request.count = count;
        request.memory = memory::USERPTR;
        match self.video.format() {
            Ok(format) => request.format = format,
            Err(errno) => return format!("G_FMT: {errno:?}"),
        }
        change(&mut request);
        let outcome = word(self.video.create_bufs(&mut request));
        format!(
            "{outcome}[index {} count {} memory {} type {} sizeimage {} flags {:#x} max {} reserved {:?}]",
            request.index,
            request.count,
            request.memory,
            request.format.buf_type,
            request.format.pix_sizeimage(),
            request.flags,
            request.max_num_buffers,
            request.reserved
        )
    }

    /// An ioctl on 16 KiB of zeroes: only the errno.
    pub fn raw(&self, command: u64) -> String {
        match Pages::new(1 << 14) {
            Ok(pages) => word(sys::ioctl_in(&self.video, command, &pages, 0)),
            Err(error) => error.to_string(),
        }
    }
}

/// `ok` (with a value that is not `()`) or the errno's name.
pub fn word<T: std::fmt::Debug>(outcome: Result<T, Errno>) -> String {
    match outcome {
        Ok(value) if size_of_val(&value) == 0 => "ok".to_owned(),
        Ok(value) => format!("ok({value:?})"),
        Err(errno) => format!("{errno:?}"),
    }
}

/// A case: a name, what to do, and where ours may differ.
pub struct Case {
    pub name: &'static str,
    pub play: fn(&Bench) -> String,
    pub differs: Option<Differs>,
}

/// An intended difference.
pub struct Differs {
    /// On this kernel only: `6.1`, `6.12`, or on any (empty).
    pub kernel: &'static str,
    /// What the real node's line begins with.
    pub real: &'static str,
    /// What ours begins with.
    pub ours: &'static str,
    /// Why that is right.
    pub why: &'static str,
}

impl Differs {
    fn applies(&self) -> bool {
        self.kernel.is_empty() || (self.kernel == "6.1") == is_6_1()
    }
}

fn compare(cases: &[Case]) -> anyhow::Result<()> {
    daemon::shared()?;
    let (mut wrong, mut intended) = (Vec::new(), 0);
    for Case { name, play, differs } in cases {
        let native = play(&Bench::new(real(VMALLOC))?);
        let served = play(&Bench::new(ours(VMALLOC))?);
        match differs.as_ref().filter(|differs| differs.applies()) {
            None if native == served => {}
            None => wrong.push(format!("{name}\n    real: {native}\n    ours: {served}")),
            Some(d) if native.starts_with(d.real) && served.starts_with(d.ours) && native != served => intended += 1,
            Some(d) => wrong.push(format!(
                "{name}: not the difference that is meant ({})\n    real: {native}\n      meant {}\n    ours: {served}\n      meant {}",
                d.why, d.real, d.ours
            )),
        }
    }
    figure(format!(
        "{} cases from {:?} on, {intended} of them with an intended difference",
        cases.len(),
        cases[0].name
    ));
    ensure!(
        wrong.is_empty(),
        "{} of {} cases differ:\n  {}",
        wrong.len(),
        cases.len(),
        wrong.join("\n  ")
    );
    Ok(())
}

fn capabilities() -> anyhow::Result<()> {
    daemon::shared()?;
    let ask = |node: Node, memory| -> anyhow::Result<(u32, u32)> {
        let video = node.open()?;
        let mut request = V4l2RequestBuffers {
            buf_type: CAPTURE,
            memory,
            ..V4l2RequestBuffers::default()
        };
        video.reqbufs_raw(&mut request)?;
        let mut create = V4l2CreateBuffers::new_zeroed();
        create.memory = memory;
        create.format = video.format()?;
        video.create_bufs(&mut create)?;
        Ok((request.capabilities, create.capabilities))
    };
    let away = buf_cap::MMAP | buf_cap::REQUESTS | buf_cap::MMAP_CACHE_HINTS;
    for number in [VMALLOC, crate::setup::CONTIG] {
        let native = ask(real(number), memory::MMAP)?;
        let served = ask(ours(number), memory::USERPTR)?;
        let want = (
            (native.0 & !away) | buf_cap::USERPTR,
            (native.1 & !away) | buf_cap::USERPTR,
        );
        ensure!(
            served == want,
            "{}: {served:#x?} instead of {want:#x?}",
            ours(number)
        );
    }
    let flags = |node: Node| -> anyhow::Result<String> {
        let video = node.open()?;
        let mut capability = [0u8; 104];
        sys::ioctl(&video, command::QUERYCAP, &mut capability)?;
        Ok(format!("{capability:x?}"))
    };
    ensure!(flags(real(VMALLOC))? == flags(ours(VMALLOC))?, "QUERYCAP differs");
    Ok(())
}
