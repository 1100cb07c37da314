//! write(2) to output nodes: how much each call takes, what it does when there is no room, who may.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use vidcompat_proto::abi::v4l2::buf_type;

use super::nodes::{Set, blocking, ctl, interrupted, select_vbi};
use crate::daemon;
use crate::nodes::{Found, Kind, vivid};
use crate::report::{equal, same_on};
use crate::setup::Test;
use crate::sys;
use crate::video::Video;

pub const TESTS: &[(&str, Test)] = &[
    ("write::pieces_of_any_size_end_where_the_frame_ends", any_size),
    ("write::the_bytes_of_a_frame_in_pieces_arrive_in_order", content),
    ("write::pieces_of_a_frame_beyond_one_request", large_frames),
    (
        "write::a_piece_that_continues_a_call_never_begins_a_frame",
        at_a_boundary,
    ),
    ("write::nodes_that_put_nothing_out_refuse_it", refused),
    (
        "write::o_nonblock_makes_it_eagain_until_there_is_room",
        nonblocking,
    ),
    ("write::a_call_that_waits_goes_on_when_there_is_room", waits),
    ("write::a_second_file_and_a_second_writer_are_ebusy", others),
    ("write::signals_end_it", signals),
    ("write::radio_write_takes_rds_blocks_as_they_go_out", radio),
];

/// More than any frame here has.
const PLENTY: usize = 4 << 20;
/// What FUSE sends in one request.
const REQUEST: usize = 131_072;

fn write_sizes(path: &Path, sizes: &[usize]) -> anyhow::Result<Vec<String>> {
    let video = Video::at(path, 0)?;
    let bytes = vec![0x10; PLENTY];
    Ok(sizes
        .iter()
        .map(|size| format!("{size}: {:?}", video.write(&bytes[..*size])))
        .collect())
}

fn pieces(node: &Found) -> anyhow::Result<usize> {
    let whole = same_on(node, |path| write_sizes(path, &[PLENTY; 8]))?;
    let frame = Video::at(&node.real(), 0)?.write(&vec![0; PLENTY])?;
    ensure!(
        whole.iter().all(|line| *line == format!("{PLENTY}: Ok({frame})")),
        "{node}: {whole:?}"
    );
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
        frame.min(7),
        REQUEST,
        1,
        REQUEST - 1,
        REQUEST + 1,
        3 * REQUEST,
    ];
    let lines = same_on(node, |path| write_sizes(path, &sizes))?;
    ensure!(lines.iter().all(|line| line.contains("Ok")), "{node}: {lines:?}");
    Ok(frame)
}

fn any_size() -> anyhow::Result<()> {
    daemon::shared()?;
    for instance in 0..3 {
        pieces(&vivid(instance, Kind::MetaOutput)?)?;
    }
    // Raw or sliced, as whoever came before has left it.
    pieces(&vivid(0, Kind::VbiOutput)?)?;
    Ok(())
}

/// What vivid's metadata output gets it gives to controls of its camera: brightness, contrast, saturation, hue.
fn content() -> anyhow::Result<()> {
    daemon::shared()?;
    let (node, camera) = (vivid(0, Kind::MetaOutput)?, vivid(0, Kind::VideoCapture)?);
    let mut number = 40;
    let outcome = same_on(&node, |path| {
        let meta = Video::at(path, 0)?;
        for cut in [8, 1, 3, 7] {
            number = number % 100 + 7;
            let values: [i16; 4] = [number, number + 1, number + 2, -number];
            let frame: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            meta.write(&frame[..cut])?;
            if cut < 8 {
                // More than is left: it goes nowhere.
                ensure!(
                    meta.write(&[&frame[cut..], &[0xff; 20]].concat())? == 8 - cut,
                    "cut at {cut}"
                );
            }
            let told = format!(
                "brightness: {} contrast: {} saturation: {} hue: {}",
                values[0], values[1], values[2], values[3]
            );
            until(&told, || {
                let now = ctl(&camera, &["-C", "brightness,contrast,saturation,hue"])?;
                Ok(now.split_whitespace().collect::<Vec<_>>().join(" "))
            })?;
        }
        Ok(vec![])
    });
    ctl(
        &camera,
        &["-c", "brightness=128,contrast=128,saturation=128,hue=0"],
    )?;
    outcome.map(drop)
}

fn until(wanted: &str, mut look: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let now = look()?;
        if now == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{now} and not {wanted}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// vivid's video output takes the bytes and refuses every frame that is full with EINVAL, because vb2 has forgotten
/// their number by then (`__prepare_mmap` calls `__fill_vb2_buffer`). So this tells how far pieces go within a frame,
/// and what is lost when the last one fails: a CUSE write(2) that has got somewhere cannot fail.
fn large_frames() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoOutput)?;
    let frame = Video::at(&node.real(), 0)?
        .format_of(buf_type::VIDEO_OUTPUT)?
        .pix_sizeimage() as usize;
    ensure!(frame > 4 * REQUEST, "frames of {frame} bytes");
    let within = [
        1,
        REQUEST - 1,
        REQUEST,
        REQUEST + 1,
        100,
        frame - 3 * REQUEST - 102,
        1,
    ];
    let lines = same_on(&node, |path| write_sizes(path, &within))?;
    ensure!(lines.iter().take(6).all(|line| line.contains("Ok")), "{lines:?}");
    let native = write_sizes(&node.real(), &[frame, 1])?;
    let served = write_sizes(&node.ours(), &[frame, 1])?;
    if !native[0].contains("EINVAL") {
        return equal(&native, &served);
    }
    // All but the last piece, how long it may be; that is in the buffer too, which is full.
    let whole = served[0]
        .strip_prefix(&format!("{frame}: Ok("))
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|count| count.parse::<usize>().ok());
    ensure!(
        whole.is_some_and(|count| count < frame && count + REQUEST >= frame),
        "{served:?} for frames of {frame}"
    );
    equal(&native[1..], &served[1..])
}

/// writev(2) of small pieces is what makes CUSE cut a call elsewhere than at 131072 bytes: a request has 32 pages.
/// Thirty-two times 810 bytes are half a frame of raw VBI.
fn at_a_boundary() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VbiOutput)?;
    select_vbi(&node, buf_type::VBI_OUTPUT)?;
    let frame = 64 * 810;
    let memory = vec![0x10; 4096 * 96];
    let parts: Vec<IoSlice<'_>> = memory
        .chunks(4096)
        .map(|page| IoSlice::new(&page[..810]))
        .collect();
    let play = |path: &Path| -> anyhow::Result<Vec<String>> {
        let video = Video::at(path, 0)?;
        Ok(vec![
            format!("two halves: {:?}", video.write_vectored(&parts[..64])),
            format!("three halves: {:?}", video.write_vectored(&parts)),
            format!("one frame: {:?}", video.write(&memory[..frame])),
        ])
    };
    let lines = |second: usize, third: usize| {
        vec![
            format!("two halves: Ok({frame})"),
            format!("three halves: Ok({second})"),
            format!("one frame: Ok({third})"),
        ]
    };
    // The kernel calls a driver without write_iter once for each part: to it they are many calls, to CUSE one.
    equal(&lines(frame / 2 * 3, frame / 2), &play(&node.real())?).context("the real node")?;
    equal(&lines(frame, frame), &play(&node.ours())?).context("ours")
}

fn refused() -> anyhow::Result<()> {
    daemon::shared()?;
    for kind in Kind::OF_VIVID {
        if matches!(
            kind,
            Kind::VideoOutput | Kind::VbiOutput | Kind::MetaOutput | Kind::RadioTx
        ) {
            continue;
        }
        let lines = same_on(&vivid(0, kind)?, |path| write_sizes(path, &[1, 300, PLENTY]))?;
        ensure!(
            lines.iter().all(|line| line.contains("EINVAL")),
            "{kind:?}: {lines:?}"
        );
    }
    Ok(())
}

const G_DV_TIMINGS: u64 = 0xc084_5658;
const S_DV_TIMINGS: u64 = 0xc084_5657;

/// Frames of the metadata output last more than a second as long as this lives.
struct Slow {
    screen: Found,
    before: [u8; 132],
}

impl Slow {
    fn begin() -> anyhow::Result<(Self, Found)> {
        let screen = vivid(0, Kind::VideoOutput)?;
        // HDMI.
        ctl(&screen, &["--set-output", "1"])?;
        let video = Video::at(&screen.real(), 0)?;
        let mut before = [0; 132];
        sys::ioctl(&video, G_DV_TIMINGS, &mut before)?;
        let slow = Self { screen, before };
        // Hardly any pixel clock and much blanking (struct v4l2_dv_timings).
        let mut timings = [0; 132];
        for (at, word) in [
            (4, 1920_u32),    // width
            (8, 1200),        // height
            (20, 14_000_000), // pixelclock
            (28, 5000),       // hfrontporch
            (36, 5000),       // hbackporch
            (40, 3),          // vfrontporch
            (44, 6),          // vsync
            (48, 26),         // vbackporch
            (64, 4),          // standards: CVT
        ] {
            timings[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        sys::ioctl(&video, S_DV_TIMINGS, &mut timings)?;
        Ok((slow, vivid(0, Kind::MetaOutput)?))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // The test has said already what is wrong with the device.
        if let Ok(video) = Video::at(&self.screen.real(), 0) {
            let _ = sys::ioctl(&video, S_DV_TIMINGS, &mut self.before);
        }
        drop(ctl(&self.screen, &["--set-output", "0"]));
    }
}

/// Writes until there is no room: how often, and how it was told.
fn fill(video: &Video, bytes: &[u8]) -> anyhow::Result<()> {
    for _ in 0..1000 {
        match video.write(bytes) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => bail!("{errno:?}"),
        }
    }
    bail!("never full")
}

fn nonblocking() -> anyhow::Result<()> {
    daemon::shared()?;
    let (slow, node) = Slow::begin()?;
    let lines = same_on(&node, |path| {
        let meta = Video::at(path, libc::O_NONBLOCK)?;
        fill(&meta, &[1; 8])?;
        let mut lines = Vec::new();
        for _ in 0..2 {
            lines.push(format!("full: {:?}", meta.poll(PollFlags::POLLOUT, 0)?));
            lines.push(format!("room: {:?}", meta.poll(PollFlags::POLLOUT, 5000)?));
            // Half a frame, the rest, and there is no more room.
            for size in [3, 8, 8] {
                lines.push(format!("{size}: {:?}", meta.write(&vec![1; size])));
            }
        }
        Ok(lines)
    })?;
    drop(slow);
    ensure!(
        lines[0] == "full: PollFlags(0x0)" && lines[1].contains("POLLOUT") && lines[4].contains("EAGAIN"),
        "{lines:?}"
    );
    Ok(())
}

fn waits() -> anyhow::Result<()> {
    daemon::shared()?;
    let (slow, node) = Slow::begin()?;
    let lines = same_on(&node, |path| {
        let meta = Video::at(path, libc::O_NONBLOCK)?;
        fill(&meta, &[1; 8])?;
        blocking(&meta)?;
        // The first frame goes at once: whether this one finds room is chance.
        let mut lines = vec![format!("{:?}", meta.write(&[1; 20]))];
        let begin = Instant::now();
        let written = meta.write(&[1; 20]);
        lines.push(format!(
            "{written:?}, slept: {}",
            begin.elapsed() > Duration::from_millis(100)
        ));
        Ok(lines)
    })?;
    drop(slow);
    ensure!(lines[1] == "Ok(8), slept: true", "{lines:?}");
    Ok(())
}

fn others() -> anyhow::Result<()> {
    daemon::shared()?;
    let (slow, node) = Slow::begin()?;
    let lines = same_on(&node, |path| {
        let meta = Arc::new(Video::at(path, libc::O_NONBLOCK)?);
        fill(&meta, &[1; 8])?;
        blocking(&meta)?;
        let mut lines = vec![format!("another file: {:?}", Video::at(path, 0)?.write(&[1; 8]))];
        // A frame that has just gone out is a new second to sleep in.
        lines.push(format!("{:?}", meta.write(&[1; 8])));
        let sleeping = Arc::clone(&meta);
        let first = thread::spawn(move || sleeping.write(&[1; 8]));
        thread::sleep(Duration::from_millis(200));
        let second = meta.write(&[1; 8]);
        let slept = !first.is_finished();
        let first = first.join().ok().context("the thread panicked")?;
        lines.push(format!("slept: {slept}, second {second:?}, first {first:?}"));
        Ok(lines)
    })?;
    drop(slow);
    equal(
        &[
            "another file: Err(EBUSY)".to_owned(),
            "Ok(8)".to_owned(),
            "slept: true, second Err(EBUSY), first Ok(8)".to_owned(),
        ],
        &lines,
    )
}

/// What FUSE cannot tell of a write(2) that sleeps is the same as for read(2): it never restarts one.
fn signals() -> anyhow::Result<()> {
    daemon::shared()?;
    let (slow, node) = Slow::begin()?;
    for (options, signals) in [
        (&["-w", "-e"][..], &[Signal::SIGUSR1][..]),
        (&["-w"], &[Signal::SIGINT]),
        (&["-w"], &[Signal::SIGKILL]),
    ] {
        same_on(&node, |path| Ok(vec![interrupted(path, options, "8", signals)?]))
            .with_context(|| format!("{options:?} {signals:?}"))?;
    }
    let stop_and_go = [Signal::SIGSTOP, Signal::SIGCONT];
    for (options, signals, handled) in [
        (&["-w", "-r"][..], &[Signal::SIGUSR1][..], 1),
        (&["-w"], &stop_and_go, 0),
    ] {
        let native = interrupted(&node.real(), options, "8", signals)?;
        let served = interrupted(&node.ours(), options, "8", signals)?;
        let told = |outcome: &str| format!("write: {outcome}, handler ran {handled} times\nexit status: 0");
        equal(&[told("some bytes"), told("EINTR")], &[native, served])
            .with_context(|| format!("the known limit for {signals:?}"))?;
    }
    drop(slow);
    Ok(())
}

fn radio() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::RadioTx)?;
    let lines = same_on(&node, |path| {
        let mut lines = write_sizes(path, &[3, 300])?;
        let blocks = Set::control(&node, "rds_tx_i_o_mode", 0, 1)?;
        let radio = Video::at(path, 0)?;
        let bytes = vec![0; PLENTY];
        for size in [3, 9, 10, 11, 2, 1] {
            lines.push(format!("{size}: {:?}", radio.write(&bytes[..size])));
        }
        // So many as the time has brought since the last one, then one by one.
        let many = radio.write(&bytes)?;
        lines.push(format!("many: {} {}", many > 100, many % 3));
        let begin = Instant::now();
        let more = radio.write(&bytes)?;
        lines.push(format!("more: {} {}", more > 0 && more < 300, more % 3));
        ensure!(
            begin.elapsed() < Duration::from_secs(2),
            "it slept for {:?}",
            begin.elapsed()
        );
        lines.push(format!(
            "another file: {:?}",
            Video::at(path, 0)?.write(&bytes[..30])
        ));
        drop(radio);
        let nonblocking = Video::at(path, libc::O_NONBLOCK)?;
        fill(&nonblocking, &bytes)?;
        lines.push(format!("poll: {:?}", nonblocking.poll(PollFlags::POLLOUT, 0)?));
        drop(blocks);
        Ok(lines)
    })?;
    ensure!(
        lines[0].contains("EINVAL")
            && lines[3] == "9: Ok(9)"
            && lines[4] == "10: Ok(9)"
            && lines[10].contains("EBUSY"),
        "{lines:?}"
    );
    let silent = Set::control(&node, "rds_tx_i_o_mode", 0, 1)?;
    for (options, signals) in [
        (&["-w", "-e"][..], &[Signal::SIGUSR1][..]),
        (&["-w"], &[Signal::SIGKILL]),
    ] {
        // RDS off: nothing goes out any more.
        ctl(&node, &["--set-modulator", "mono"])?;
        let outcome = same_on(&node, |path| {
            Ok(vec![interrupted(path, options, "300", signals)?])
        });
        ctl(&node, &["--set-modulator", "stereo-rds"])?;
        outcome.with_context(|| format!("{options:?} {signals:?}"))?;
    }
    drop(silent);
    Ok(())
}
