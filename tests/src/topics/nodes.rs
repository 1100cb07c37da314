//! Nodes of every kind that vivid has: that ours are of the same kind, what read(2) gives, what poll says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use vidcompat_proto::abi::format::{capture_types, output_types};
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2Format, V4l2RequestBuffers, buf_type, memory};
use zerocopy::{FromZeros, IntoBytes};

use super::readiness::{Ask, QUIET, READY, epoll_once, poll, select_once};
use crate::client::{AT_ONCE, Client, run};
use crate::daemon;
use crate::nodes::{Found, Kind, named, vivid};
use crate::report::same_on;
use crate::setup::Test;
use crate::sys;
use crate::video::{Video, buffer, command};

pub const TESTS: &[(&str, Test)] = &[
    ("nodes::each_kind_is_served_as_the_same_kind", same_kind),
    ("nodes::formats_of_each_kind_can_be_read_and_set", formats),
    ("nodes::read_ends_where_the_frame_of_each_kind_ends", read_frames),
    ("nodes::read_of_raw_and_of_sliced_vbi", read_vbi),
    (
        "nodes::a_second_reader_is_ebusy_while_the_first_sleeps",
        two_readers,
    ),
    ("nodes::radio_read_gives_rds_blocks_as_they_come", radio_read),
    ("nodes::radio_read_sleeps_until_there_is_reception", radio_sleeps),
    ("nodes::signals_end_a_radio_read_as_in_the_driver", radio_signals),
    ("nodes::a_seek_waits_where_the_file_is_blocking", radio_seek),
    (
        "nodes::a_dequeued_output_buffer_has_the_field_of_the_format",
        output_field,
    ),
    ("nodes::poll_gives_the_same_bits_for_each_kind", || bits(poll)),
    ("nodes::select_gives_the_same_sets_for_each_kind", || {
        bits(select_once)
    }),
    ("nodes::epoll_gives_the_same_bits_for_each_kind", || {
        bits(epoll_once)
    }),
];

pub const M2M_TESTS: &[(&str, Test)] = &[
    ("nodes::poll_of_an_m2m_node_that_does_not_stream", m2m_poll),
    ("nodes::epoll_edge_tells_of_a_lasting_error_once", m2m_error_edge),
];

/// More than any frame here has.
const PLENTY: usize = 4 << 20;

const CAPTURES: [Kind; 4] = [Kind::VideoCapture, Kind::Sdr, Kind::MetaCapture, Kind::Touch];

fn every_node() -> anyhow::Result<Vec<Found>> {
    let mut nodes = Vec::new();
    for instance in 0..2 {
        for kind in Kind::OF_VIVID {
            nodes.push(vivid(instance, kind)?);
        }
    }
    Ok(nodes)
}

/// Runs v4l2-ctl on the real node.
pub(super) fn ctl(node: &Found, args: &[&str]) -> anyhow::Result<String> {
    let path = node.real().display().to_string();
    run("v4l2-ctl", &[&["-d", path.as_str()], args].concat(), AT_ONCE)
}

/// A control of a device that has another value as long as this lives.
pub(super) struct Set<'a> {
    node: &'a Found,
    back: String,
}

impl<'a> Set<'a> {
    pub(super) fn control(node: &'a Found, name: &str, value: i32, usually: i32) -> anyhow::Result<Self> {
        ctl(node, &["-c", &format!("{name}={value}")])?;
        let back = format!("{name}={usually}");
        Ok(Self { node, back })
    }
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        // The test has said already what is wrong with the device.
        drop(ctl(self.node, &["-c", &self.back]));
    }
}

fn same_kind() -> anyhow::Result<()> {
    daemon::shared()?;
    for node in every_node()? {
        same_on(&node, |path| {
            let mut capability = [0_u8; 104];
            sys::ioctl(Video::at(path, 0)?, command::QUERYCAP, &mut capability)?;
            Ok(vec![format!("{capability:?}")])
        })?;
        // The way in which v4l2-ctl and v4l2-compliance find out what a node is.
        let number = fs::metadata(node.ours())?.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let uevent = fs::read_to_string(format!("/sys/dev/char/{major}:{minor}/uevent"))?;
        let name = node
            .ours()
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        ensure!(
            major == 81 && minor > 255 && uevent.contains(&format!("DEVNAME={name}\n")),
            "{node}: {major}:{minor} {uevent}"
        );
    }
    Ok(())
}

fn formats() -> anyhow::Result<()> {
    daemon::shared()?;
    for node in every_node()? {
        let lines = same_on(&node, |path| {
            let video = Video::at(path, 0)?;
            let types = capture_types(node.device_caps).chain(output_types(node.device_caps));
            Ok(types
                .flat_map(|queue| {
                    let told = video.format_of(queue);
                    let set = told.and_then(|format| video.set_format(format));
                    [
                        format!("G_FMT {queue}: {:?}", told.as_ref().map(V4l2Format::as_bytes)),
                        format!("S_FMT {queue}: {:?}", set.as_ref().map(V4l2Format::as_bytes)),
                    ]
                })
                .collect())
        })?;
        let has_queues = !matches!(node.kind, Kind::RadioRx | Kind::RadioTx);
        ensure!(lines.is_empty() != has_queues, "{node}: {lines:?}");
    }
    Ok(())
}

/// Reads pieces of one open file: how many bytes each gave.
fn read_sizes(path: &Path, sizes: &[usize]) -> anyhow::Result<Vec<String>> {
    let video = Video::at(path, 0)?;
    Ok(sizes
        .iter()
        .map(|size| format!("{size}: {:?}", video.read(*size).map(|bytes| bytes.len())))
        .collect())
}

/// Pieces around the length of a frame and around what FUSE asks for at once.
fn read_pieces(node: &Found) -> anyhow::Result<usize> {
    let whole = same_on(node, |path| read_sizes(path, &[PLENTY, PLENTY, PLENTY]))?;
    let frame = Video::at(&node.real(), 0)?.read(PLENTY)?.len();
    ensure!(whole[0] == format!("{PLENTY}: Ok({frame})"), "{node}: {whole:?}");
    let half = frame / 2;
    let sizes = [
        frame,
        frame + 1,
        1,
        frame - 1,
        frame - 1,
        1,
        1,
        PLENTY,
        half,
        PLENTY,
        half,
        frame - half,
        frame,
    ];
    let lines = same_on(node, |path| read_sizes(path, &sizes))?;
    ensure!(lines.iter().all(|line| line.contains("Ok")), "{node}: {lines:?}");
    Ok(frame)
}

fn read_frames() -> anyhow::Result<()> {
    daemon::shared()?;
    for instance in 0..2 {
        for kind in CAPTURES {
            read_pieces(&vivid(instance, kind)?)?;
        }
    }
    // Two planes: the driver has no read() for that.
    let node = vivid(1, Kind::VideoCapture)?;
    let before = Video::at(&node.real(), 0)?.format_of(buf_type::VIDEO_CAPTURE_MPLANE)?;
    ctl(&node, &["-v", "pixelformat=NM16"])?;
    let lines = same_on(&node, |path| read_sizes(path, &[PLENTY, 10]));
    Video::at(&node.real(), 0)?.set_format(before)?;
    let lines = lines?;
    ensure!(lines.iter().all(|line| line.contains("EBUSY")), "{lines:?}");
    for kind in [
        Kind::VideoOutput,
        Kind::VbiOutput,
        Kind::MetaOutput,
        Kind::RadioTx,
    ] {
        let lines = same_on(&vivid(0, kind)?, |path| read_sizes(path, &[PLENTY, 1]))?;
        ensure!(lines.iter().all(|line| line.contains("EINVAL")), "{lines:?}");
    }
    Ok(())
}

/// A VBI node of vivid is raw or sliced as the last REQBUFS said; one that puts out, as the last S_FMT said, and then
/// REQBUFS of the other is EINVAL.
pub(super) fn select_vbi(node: &Found, buf_type: u32) -> anyhow::Result<()> {
    let video = Video::at(&node.real(), 0)?;
    let mut format = V4l2Format::new_zeroed();
    format.buf_type = buf_type;
    crate::sys::ioctl(&video, command::G_FMT, &mut format)?;
    crate::sys::ioctl(&video, command::S_FMT, &mut format)?;
    let mut nothing = V4l2RequestBuffers {
        buf_type,
        memory: memory::MMAP,
        ..V4l2RequestBuffers::default()
    };
    Ok(video.reqbufs_raw(&mut nothing)?)
}

fn read_vbi() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VbiCapture)?;
    // A webcam has no VBI.
    let none = same_on(&node, |path| read_sizes(path, &[PLENTY, 1]))?;
    ensure!(none.iter().all(|line| line.contains("EINVAL")), "{none:?}");
    let camera = vivid(0, Kind::VideoCapture)?;
    ctl(&camera, &["-i", "1"])?;
    let check = || -> anyhow::Result<()> {
        select_vbi(&node, buf_type::VBI_CAPTURE)?;
        let raw = read_pieces(&node)?;
        select_vbi(&node, buf_type::SLICED_VBI_CAPTURE)?;
        let sliced = read_pieces(&node)?;
        ensure!(raw != sliced, "both of {raw} bytes");
        Ok(())
    };
    let outcome = check();
    ctl(&camera, &["-i", "0"])?;
    outcome
}

fn drained(video: &Video) -> anyhow::Result<()> {
    for _ in 0..1000 {
        match video.read(PLENTY) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    anyhow::bail!("never empty")
}

fn two_readers() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    ctl(&node, &["-p", "1"])?;
    let lines = same_on(&node, |path| {
        let video = Arc::new(Video::at(path, 0)?);
        // The first frame comes at once; after the second one the next is a second away.
        for _ in 0..2 {
            video.read(PLENTY)?;
        }
        let sleeping = Arc::clone(&video);
        let first = thread::spawn(move || sleeping.read(PLENTY).map(|bytes| bytes.len()));
        thread::sleep(Duration::from_millis(200));
        let second = video.read(PLENTY).map(|bytes| bytes.len());
        let slept = !first.is_finished();
        let first = first.join().ok().context("the thread panicked")?;
        Ok(vec![format!(
            "slept: {slept}, second {second:?}, first {first:?}"
        )])
    });
    ctl(&node, &["-p", "5"])?;
    let lines = lines?;
    ensure!(
        lines[0].contains("slept: true, second Err(EBUSY), first Ok"),
        "{lines:?}"
    );
    Ok(())
}

/// Takes O_NONBLOCK away.
pub(super) fn blocking(video: &Video) -> anyhow::Result<()> {
    nix::fcntl::fcntl(video, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_RDWR))?;
    Ok(())
}

/// Are these whole RDS blocks (`struct v4l2_rds_data`), in the order A B C D of a group?
fn rds_blocks(bytes: &[u8]) -> bool {
    let numbers: Vec<u8> = bytes
        .chunks(3)
        .map(|block| block.get(2).copied().unwrap_or(0xff) & 7)
        .collect();
    // C' (4) stands where C does.
    let place = |number: u8| if number == 4 { 2 } else { number };
    numbers.iter().all(|number| *number <= 4)
        && numbers
            .windows(2)
            .all(|two| (place(two[0]) + 1) % 4 == place(two[1]))
}

fn radio_read() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::RadioRx)?;
    let lines = same_on(&node, |path| {
        let radio = Video::at(path, 0)?;
        let mut lines = Vec::new();
        // Some hundred blocks are there at once.
        for size in [3, 9, 10, 11, 2, 1, 300] {
            let got = radio.read(size);
            lines.push(format!(
                "{size}: {:?}",
                got.map(|bytes| (bytes.len(), rds_blocks(&bytes)))
            ));
        }
        let rest = radio.read(PLENTY)?;
        lines.push(format!("the rest: {} {}", rest.len() > 100, rds_blocks(&rest)));
        // Now they come one by one.
        let next = radio.read(PLENTY)?;
        lines.push(format!(
            "more: {} {}",
            (3..300).contains(&next.len()),
            rds_blocks(&next)
        ));
        let other = Video::at(path, 0)?;
        lines.push(format!("another file: {:?}", other.read(30)));
        lines.push(format!("and of less than a block: {:?}", other.read(2)));
        drop(radio);
        let nonblocking = Video::at(path, libc::O_NONBLOCK)?;
        drained(&nonblocking)?;
        lines.push(format!("poll: {:?}", nonblocking.poll(PollFlags::POLLIN, 0)?));
        let controls = Set::control(&node, "rds_rx_i_o_mode", 1, 0)?;
        lines.push(format!("by controls: {:?}", nonblocking.read(30)));
        drop(controls);
        Ok(lines)
    })?;
    ensure!(
        lines[1] == "9: Ok((9, true))" && lines[2] == "10: Ok((9, true))" && lines[4] == "2: Ok((0, true))",
        "{lines:?}"
    );
    ensure!(
        lines[7] == "the rest: true true" && lines[8] == "more: true true",
        "{lines:?}"
    );
    ensure!(
        lines[9].contains("EBUSY") && lines[12].contains("EINVAL"),
        "{lines:?}"
    );
    Ok(())
}

fn radio_sleeps() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::RadioRx)?;
    let lines = same_on(&node, |path| {
        let deaf = Set::control(&node, "rds_reception", 0, 1)?;
        let radio = Arc::new(Video::at(path, 0)?);
        let sleeping = Arc::clone(&radio);
        let reader = thread::spawn(move || sleeping.read(PLENTY));
        thread::sleep(Duration::from_millis(400));
        let slept = !reader.is_finished();
        drop(deaf);
        let got = reader.join().ok().context("the thread panicked")??;
        Ok(vec![format!(
            "slept: {slept}, then {} {}",
            got.len() >= 3,
            rds_blocks(&got)
        )])
    })?;
    ensure!(lines == ["slept: true, then true true"], "{lines:?}");
    Ok(())
}

/// A client that sleeps in read or write gets `signals`: what it says then.
pub(super) fn interrupted(
    path: &Path,
    options: &[&str],
    size: &str,
    signals: &[Signal],
) -> anyhow::Result<String> {
    let path = path.display().to_string();
    let mut client = Client::start("blocked_io", &[options, &[path.as_str(), size]].concat())?;
    ensure!(
        client.line()? == "waiting",
        "blocked_io on {path} failed: {}",
        client.rest()
    );
    if options.contains(&"-w") {
        client.until_asleep_in_write()?;
    } else {
        client.until_asleep_in_read()?;
    }
    for signal in signals {
        client.signal(*signal)?;
        if *signal == Signal::SIGSTOP {
            client.until_stopped()?;
        }
    }
    let status = client.end(AT_ONCE)?;
    Ok(format!("{}{status}", client.rest()))
}

/// vivid finds the next station at once, but like any driver it refuses to look for it on a non-blocking file.
fn radio_seek() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::RadioRx)?;
    let lines = same_on(&node, |path| {
        // struct v4l2_hw_freq_seek: tuner, type (radio), seek_upward, wrap_around, spacing, rangelow, rangehigh.
        let seek = |radio: &Video, upward: u32| {
            let mut seek = [0, 1, upward, 0, 0, 0, 0, 0, 0, 0, 0, 0_u32];
            sys::ioctl(radio, command::S_HW_FREQ_SEEK, &mut seek)
        };
        let radio = Video::at(path, 0)?;
        let mut lines = vec![format!("blocking: {:?} {:?}", seek(&radio, 1), seek(&radio, 0))];
        let nonblocking = Video::at(path, libc::O_NONBLOCK)?;
        lines.push(format!("non-blocking: {:?}", seek(&nonblocking, 1)));
        // V4L2_PRIORITY_RECORD
        let priority = sys::ioctl(&nonblocking, command::S_PRIORITY, &mut 3_u32);
        lines.push(format!(
            "priority: {priority:?}, another file: {:?}",
            seek(&radio, 1)
        ));
        lines.push(format!("non-blocking: {:?}", seek(&nonblocking, 1)));
        blocking(&nonblocking)?;
        lines.push(format!("no longer: {:?}", seek(&nonblocking, 1)));
        drop(radio);
        // It is as it was for other calls.
        let rds = Video::at(path, libc::O_NONBLOCK)?;
        lines.push(format!("seek: {:?}", seek(&rds, 1)));
        drop(nonblocking);
        let deaf = Set::control(&node, "rds_reception", 0, 1)?;
        blocking(&rds)?;
        lines.push(format!("seek: {:?}", seek(&rds, 1)));
        nix::fcntl::fcntl(&rds, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        lines.push(format!("read: {:?}", rds.read(30)));
        drop(deaf);
        Ok(lines)
    })?;
    ensure!(
        lines[..5]
            == [
                "blocking: Ok(0) Ok(0)",
                "non-blocking: Err(EAGAIN)",
                "priority: Ok(0), another file: Err(EBUSY)",
                "non-blocking: Err(EAGAIN)",
                "no longer: Ok(0)"
            ],
        "{lines:?}"
    );
    Ok(())
}

/// v4l2-compliance says another thing (see `compliance`).
fn output_field() -> anyhow::Result<()> {
    daemon::shared()?;
    let on = |path: &Path| -> anyhow::Result<Vec<String>> {
        let video = Video::at(path, 0)?;
        let format = video.format_of(buf_type::VIDEO_OUTPUT)?;
        let pages = sys::Pages::new(format.pix_sizeimage() as usize)?;
        let mut request = V4l2RequestBuffers {
            count: 2,
            buf_type: buf_type::VIDEO_OUTPUT,
            memory: memory::USERPTR,
            ..Default::default()
        };
        video.reqbufs_raw(&mut request)?;
        let buffer = |index| V4l2Buffer {
            buf_type: buf_type::VIDEO_OUTPUT,
            bytesused: format.pix_sizeimage(),
            ..buffer(index, pages.at(0), format.pix_sizeimage())
        };
        let mut fields = Vec::new();
        for index in 0..2 {
            fields.push(video.on_buffer(command::QBUF, buffer(index))?.field);
        }
        sys::ioctl(&video, command::STREAMON, &mut buf_type::VIDEO_OUTPUT.clone())?;
        for _ in 0..4 {
            let given = video.on_buffer(command::DQBUF, buffer(0))?;
            fields.push(given.field);
            fields.push(video.on_buffer(command::QUERYBUF, buffer(given.index))?.field);
            fields.push(video.on_buffer(command::QBUF, buffer(given.index))?.field);
        }
        let all = fields.iter().all(|field| *field == format.pix_field());
        Ok(vec![format!("format: {}, {fields:?}, {all}", format.pix_field())])
    };
    // V4L2_FIELD_INTERLACED; the second one's driver has no USERPTR.
    let lines = same_on(&vivid(0, Kind::VideoOutput)?, on)?;
    ensure!(
        lines[0].starts_with("format: 4,") && lines[0].ends_with("true"),
        "{lines:?}"
    );
    let contiguous = on(&vivid(2, Kind::VideoOutput)?.ours())?;
    ensure!(contiguous == lines, "{contiguous:?}");
    Ok(())
}

/// vivid's radio ends its sleep by EINTR itself, so nothing is lost that FUSE could not tell.
fn radio_signals() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::RadioRx)?;
    let deaf = Set::control(&node, "rds_reception", 0, 1)?;
    for (option, signals) in [
        (&["-e"][..], &[Signal::SIGUSR1][..]),
        (&["-r"], &[Signal::SIGUSR1]),
        (&[], &[Signal::SIGSTOP, Signal::SIGCONT]),
        (&[], &[Signal::SIGINT]),
        (&[], &[Signal::SIGKILL]),
    ] {
        same_on(&node, |path| Ok(vec![interrupted(path, option, "300", signals)?]))
            .with_context(|| format!("{option:?} {signals:?}"))?;
    }
    drop(deaf);
    Ok(())
}

/// Every kind in the states that it has without streaming.
fn bits(ask: Ask) -> anyhow::Result<()> {
    daemon::shared()?;
    let (input, output, priority) = (PollFlags::POLLIN, PollFlags::POLLOUT, PollFlags::POLLPRI);
    let also = PollFlags::POLLRDNORM | PollFlags::POLLWRNORM;
    for node in every_node()? {
        let puts_out = matches!(
            node.kind,
            Kind::VideoOutput | Kind::VbiOutput | Kind::MetaOutput | Kind::RadioTx
        );
        let (own, other) = if puts_out {
            (output, input)
        } else {
            (input, output)
        };
        same_on(&node, |path| {
            let video = Video::at(path, 0)?;
            let mut lines = Vec::new();
            let mut say = |video: &Video, what: &str, events, timeout| -> anyhow::Result<()> {
                lines.push(format!("{what}, {events:?}: {}", ask(video, events, timeout)?));
                Ok(())
            };
            say(&video, "fresh", priority, QUIET)?;
            say(&video, "fresh", other, QUIET)?;
            say(&video, "fresh", other | priority, QUIET)?;
            // This starts emulation.
            say(&video, "its own", own, READY)?;
            say(&video, "its own", own, READY)?;
            say(&video, "all", input | output | priority | also, READY)?;
            let second = Video::at(path, 0)?;
            say(&second, "another file", priority, 0)?;
            say(&second, "another file", own, READY)?;
            say(&second, "another file", other, QUIET)?;
            drop(second);
            say(&video, "then", own, READY)?;
            drop(video);
            let after = Video::at(path, 0)?;
            say(&after, "after close", priority, 0)?;
            Ok(lines)
        })?;
    }
    Ok(())
}

fn m2m_poll() -> anyhow::Result<()> {
    daemon::shared()?;
    let (input, output, priority) = (PollFlags::POLLIN, PollFlags::POLLOUT, PollFlags::POLLPRI);
    for name in ["vim2m", "stateful-encoder", "stateful-decoder"] {
        let node = named(name)?;
        for ask in [poll, select_once, epoll_once] {
            let lines = same_on(&node, |path| {
                let video = Video::at(path, 0)?;
                [priority, input, output, input | output, input | output | priority]
                    .into_iter()
                    .map(|events| Ok(format!("{events:?}: {}", ask(&video, events, QUIET)?)))
                    .collect()
            })?;
            ensure!(lines.len() == 5, "{lines:?}");
        }
    }
    Ok(())
}

/// A node that does not stream is in error for as long as it does not. Who waits for edges hears of it once.
fn m2m_error_edge() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = named("vim2m")?;
    for flags in [
        EpollFlags::EPOLLOUT,
        EpollFlags::EPOLLIN,
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
    ] {
        let lines = same_on(&node, |path| {
            let video = Video::at(path, 0)?;
            let epoll = Epoll::new(EpollCreateFlags::empty())?;
            epoll.add(&video, EpollEvent::new(flags | EpollFlags::EPOLLET, 1))?;
            let mut lines = Vec::new();
            for _ in 0..4 {
                let mut seen = [EpollEvent::empty()];
                let count = epoll.wait(&mut seen, EpollTimeout::from(QUIET))?;
                lines.push(format!("{flags:?}: {count} {:?}", seen[0].events()));
            }
            Ok(lines)
        })?;
        ensure!(lines[0].contains("1 EpollFlags(EPOLLERR)"), "{lines:?}");
    }
    Ok(())
}
