//! Unmodified programs that map their buffers, through `vidcompat run`, beside the same call on the real node: they must
//! end alike, and what they make of a still picture must be the same bytes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::programs::{gst_words, snapshot};
use crate::client::AT_ONCE;
use crate::daemon;
use crate::nodes::{self, Found, Kind, vivid};
use crate::picture::Control;
use crate::report::equal;
use crate::setup::Test;
use crate::shim::Seat;

pub const TESTS: &[(&str, Test)] = &[
    ("shim_programs::v4l2_ctl_captures", || on_cameras(V4L2_CTL)),
    ("shim_programs::v4l2_ctl_captures_through_libv4l2", || {
        on_camera(V4L2_CTL_WRAPPED)
    }),
    ("shim_programs::v4l2_ctl_captures_from_planes", planes),
    (
        "shim_programs::v4l2_ctl_gives_and_takes_exported_buffers",
        dma_bufs,
    ),
    ("shim_programs::v4l2_ctl_puts_out", put_out),
    ("shim_programs::v4l2_ctl_converts_with_vim2m", vim2m),
    ("shim_programs::yavta", || on_cameras(YAVTA)),
    ("shim_programs::ffmpeg", || on_camera(FFMPEG)),
    ("shim_programs::fswebcam", || on_camera(FSWEBCAM)),
    ("shim_programs::streamer", || on_camera(STREAMER)),
    ("shim_programs::uvccapture", || on_camera(UVCCAPTURE)),
    ("shim_programs::mplayer", || on_camera(MPLAYER)),
    ("shim_programs::ustreamer_by_both_methods", ustreamer),
    ("shim_programs::gstreamer_captures_by_each_io_mode", gst_sources),
    ("shim_programs::gstreamer_puts_out_by_each_io_mode", gst_sinks),
    (
        "shim_programs::gstreamer_gives_a_cameras_buffers_to_an_output",
        gst_import,
    ),
    ("shim_programs::opencv", opencv),
    ("shim_programs::vlc_as_an_ordinary_user", vlc),
    ("shim_programs::zbarcam_falls_back_to_mmap", zbarcam),
    ("shim_programs::with_other_libraries_preloaded", preloads),
];

const PATIENCE: Duration = Duration::from_secs(60);
/// Where programs put what they make.
const FILE: &str = "/tmp/shim-programs";
/// A frame of the cameras, and how many are taken.
const FRAME: usize = 320 * 180 * 2;
const FRAMES: usize = 4;

/// A call of a program: words, `NODE` being the node, `FILE` [`FILE`] and `OTHER` another node of the same vivid; and how
/// many bytes it makes.
type Call = (&'static str, Makes);

/// What a call makes on the real node.
#[derive(Clone, Copy)]
enum Makes {
    /// A file of so many bytes.
    Bytes(usize),
    /// A picture, compressed or with a header.
    Picture,
    /// No file.
    Nothing,
}

const RAW: Makes = Makes::Bytes(FRAMES * FRAME);

const V4L2_CTL: &[Call] = &[
    (
        "v4l2-ctl -d NODE --stream-mmap=3 --stream-count=4 --stream-to=FILE",
        RAW,
    ),
    (
        "v4l2-ctl -d NODE --stream-mmap=4 --stream-poll --stream-count=4 --stream-to=FILE",
        RAW,
    ),
];
const V4L2_CTL_WRAPPED: &[Call] = &[(
    "v4l2-ctl -w -d NODE --stream-mmap=4 --stream-count=4 --stream-to=FILE",
    RAW,
)];
const YAVTA: &[Call] = &[("yavta -n 4 -c4 -f YUYV -s 320x180 -FFILE NODE", RAW)];
const FFMPEG: &[Call] = &[(
    "ffmpeg -v error -nostdin -f v4l2 -input_format yuyv422 -video_size 320x180 -i NODE -frames:v 4 -f rawvideo -y FILE",
    RAW,
)];
const FSWEBCAM: &[Call] = &[(
    "fswebcam -d NODE -r 320x180 --no-banner -F 1 --png 9 FILE",
    Makes::Picture,
)];
const STREAMER: &[Call] = &[("streamer -c NODE -s 320x180 -f ppm -o FILE", Makes::Picture)];
const UVCCAPTURE: &[Call] = &[("uvccapture -dNODE -oFILE -x320 -y180 -m", Makes::Picture)];
const MPLAYER: &[Call] = &[(
    "mplayer -quiet -nosound -frames 4 tv:// -tv driver=v4l2:device=NODE:width=320:height=180:outfmt=yuy2 -vo \
     yuv4mpeg:file=FILE",
    Makes::Picture,
)];

/// How a call ended, and what it made.
struct Outcome {
    status: ExitStatus,
    said: String,
    bytes: Vec<u8>,
}

fn play(seat: &Seat, words: &[&str]) -> anyhow::Result<Outcome> {
    // It may be there from the one before.
    drop(fs::remove_file(FILE));
    let (status, said) = seat.play(words, PATIENCE)?;
    Ok(Outcome {
        status,
        said,
        bytes: fs::read(FILE).unwrap_or_default(),
    })
}

/// The words of a call.
fn words<'a>(call: &'a str, other: &'a str) -> Vec<String> {
    let words = call.split_whitespace();
    words
        .map(|word| word.replace("FILE", FILE).replace("OTHER", other))
        .collect()
}

/// Makes a call from both seats.
fn compare(real: &Seat, ours: &Seat, call: &str, makes: Makes, other: &str) -> anyhow::Result<Outcome> {
    let words = words(call, other);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let native = play(real, &words)?;
    check(&native, makes).with_context(|| format!("{}: {call}", real.name))?;
    let served = play(ours, &words)?;
    alike(&native, &served).with_context(|| format!("{}: {call}", ours.name))?;
    Ok(native)
}

/// Is it what the call makes of a node that works?
fn check(native: &Outcome, makes: Makes) -> anyhow::Result<()> {
    let length = native.bytes.len();
    let right = match makes {
        Makes::Bytes(expected) => length == expected,
        Makes::Picture => length > 400,
        Makes::Nothing => length == 0,
    };
    ensure!(
        right && native.status.success(),
        "{}, {length} bytes: {}",
        native.status,
        native.said
    );
    // A picture without anything on it would be the same from any node.
    ensure!(
        length == 0 || native.bytes.iter().any(|byte| *byte != native.bytes[0]),
        "an empty picture"
    );
    Ok(())
}

fn alike(native: &Outcome, served: &Outcome) -> anyhow::Result<()> {
    let differs = native.bytes.iter().zip(&served.bytes).position(|(a, b)| a != b);
    ensure!(
        native.status == served.status && native.bytes == served.bytes,
        "{} instead of {}; {} bytes instead of {}, other ones from {differs:?} on; it says:\n{}\ninstead of:\n{}",
        served.status,
        native.status,
        served.bytes.len(),
        native.bytes.len(),
        served.said,
        native.said
    );
    Ok(())
}

/// What ours is reached through.
fn served(node: &Found) -> anyhow::Result<Seat> {
    Ok(Seat::run(node))
}

/// Makes calls on a node and on ours.
fn on(node: &Found, calls: &[Call]) -> anyhow::Result<()> {
    daemon::shared()?;
    let other = vivid(0, Kind::VideoOutput)?.real().display().to_string();
    for (call, makes) in calls {
        compare(&Seat::real(node), &served(node)?, call, *makes, &other)?;
    }
    Ok(())
}

fn on_camera(calls: &[Call]) -> anyhow::Result<()> {
    on(&vivid(0, Kind::VideoCapture)?, calls)?;
    // Some ask for a frame rate or a size of their own.
    crate::setup::devices()
}

fn on_cameras(calls: &[Call]) -> anyhow::Result<()> {
    on(&vivid(0, Kind::VideoCapture)?, calls)?;
    on(&vivid(1, Kind::VideoCapture)?, calls)
}

/// One plane, and two.
fn planes() -> anyhow::Result<()> {
    let node = vivid(2, Kind::VideoCapture)?;
    on(&node, V4L2_CTL)?;
    let two = "v4l2-ctl -d NODE -v width=320,height=180,pixelformat=NM16 --stream-mmap=3 --stream-count=4 \
               --stream-to=FILE";
    let outcome = on(&node, &[(two, RAW)]);
    crate::setup::devices().and(outcome)
}

/// From another device's exported buffers, and into it.
fn dma_bufs() -> anyhow::Result<()> {
    on(
        &vivid(0, Kind::VideoCapture)?,
        &[
            (
                "v4l2-ctl -d NODE --stream-dmabuf --export-device OTHER --stream-count=4 --stream-to=FILE",
                RAW,
            ),
            (
                "v4l2-ctl -d NODE --stream-mmap --out-device OTHER --stream-out-dmabuf --stream-count=8",
                Makes::Nothing,
            ),
        ],
    )?;
    // The exported buffers are ours.
    let exporter = vivid(0, Kind::VideoOutput)?;
    let camera = vivid(0, Kind::VideoCapture)?.real().display().to_string();
    compare(
        &Seat::real(&exporter),
        &served(&exporter)?,
        "v4l2-ctl -d OTHER --stream-dmabuf --export-device NODE --stream-count=4 --stream-to=FILE",
        RAW,
        &camera,
    )
    .map(drop)
}

fn put_out() -> anyhow::Result<()> {
    let call = "v4l2-ctl -d NODE --stream-out-mmap=4 --stream-count=20 --stream-from=/dev/zero";
    for instance in 0..3 {
        on(&vivid(instance, Kind::VideoOutput)?, &[(call, Makes::Nothing)])?;
    }
    Ok(())
}

/// What it puts out is what it is given, frame by frame: the bytes of both queues.
fn vim2m() -> anyhow::Result<()> {
    let given = "/tmp/shim-given";
    let bytes: Vec<u8> = (0..FRAMES * FRAME)
        .map(|at| (at ^ (at >> 7) ^ (at >> 13)).to_le_bytes()[0])
        .collect();
    fs::write(given, &bytes)?;
    let node = nodes::named("vim2m")?;
    let call = "v4l2-ctl -d NODE -x width=320,height=180,pixelformat=RGBP -v width=320,height=180,pixelformat=RGBP \
                --stream-out-mmap=3 --stream-mmap=3 --stream-count=4 --stream-from=OTHER --stream-to=FILE";
    daemon::shared()?;
    let outcome = compare(&Seat::real(&node), &served(&node)?, call, RAW, given)?;
    ensure!(outcome.bytes == bytes, "vim2m has made something else of it");
    Ok(())
}

fn ustreamer() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    for method in ["MMAP", "USERPTR"] {
        let native = snapshot(&Seat::real(&node), method)?;
        let served = snapshot(&served(&node)?, method)?;
        ensure!(
            native.len() > 1000 && native == served,
            "{method}: {} and {} bytes",
            native.len(),
            served.len()
        );
    }
    // It has asked for a frame rate of its own.
    crate::setup::devices()
}

/// A pipeline from both seats.
fn pipeline(node: &Found, pipeline: &str, ends: bool) -> anyhow::Result<usize> {
    let words = gst_words(&pipeline.replace("FILE", FILE))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let native = play(&Seat::real(node), &words)?;
    ensure!(
        native.status.success() == ends,
        "{pipeline}: {}: {}",
        native.status,
        native.said
    );
    let served = play(&served(node)?, &words)?;
    alike(&native, &served).with_context(|| pipeline.to_owned())?;
    Ok(native.bytes.len())
}

fn gst_sources() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    for mode in ["auto", "rw", "mmap", "userptr", "dmabuf", "dmabuf-import"] {
        // Nobody in this pipeline has a dma-buf to import.
        let works = mode != "dmabuf-import";
        let bytes = pipeline(
            &node,
            &format!(
                "-q v4l2src device=NODE io-mode={mode} num-buffers=4 ! video/x-raw,format=YUY2,width=320,height=180 ! \
                 videoconvert ! video/x-raw,format=RGB ! filesink location=FILE"
            ),
            works,
        )?;
        let expected = if works { FRAMES * 320 * 180 * 3 } else { 0 };
        ensure!(bytes == expected, "{mode}: {bytes} bytes on the real node");
    }
    crate::setup::devices()
}

fn gst_sinks() -> anyhow::Result<()> {
    daemon::shared()?;
    for mode in ["rw", "mmap", "userptr", "dmabuf"] {
        pipeline(
            &vivid(0, Kind::VideoOutput)?,
            &format!(
                "-q videotestsrc num-buffers=4 ! video/x-raw,format=YUY2,width=1280,height=720,framerate=60/1 ! \
                 v4l2sink device=NODE io-mode={mode}"
            ),
            true,
        )?;
    }
    Ok(())
}

/// The camera exports, the output imports; ours is the one, and then the other.
fn gst_import() -> anyhow::Result<()> {
    daemon::shared()?;
    let (camera, output) = (vivid(0, Kind::VideoCapture)?, vivid(0, Kind::VideoOutput)?);
    // The output has Rec. 709 only, the camera sRGB if it is not told.
    let _colours = Control::set(camera.number()?, "colorspace", 1, 2)?;
    let (from, to) = (camera.real(), output.real());
    let between = |from: &str, to: &str| {
        format!(
            "-q v4l2src device={from} io-mode=dmabuf num-buffers=8 ! \
             video/x-raw,format=YUY2,width=1280,height=720,framerate=60/1 ! v4l2sink device={to} io-mode=dmabuf-import"
        )
    };
    pipeline(&camera, &between("NODE", &to.display().to_string()), true)?;
    pipeline(&output, &between(&from.display().to_string(), "NODE"), true)?;
    crate::setup::devices()
}

const OPENCV: &str = "
import cv2, sys
camera = cv2.VideoCapture(sys.argv[1], cv2.CAP_V4L2)
camera.set(cv2.CAP_PROP_FRAME_WIDTH, 320)
camera.set(cv2.CAP_PROP_FRAME_HEIGHT, 180)
with open(sys.argv[2], 'wb') as file:
    for _ in range(4):
        good, frame = camera.read()
        if not good:
            sys.exit('no frame')
        file.write(frame.tobytes())
";

/// Python takes 12 seconds to load it: on one kernel.
fn opencv() -> anyhow::Result<()> {
    let script = "/tmp/shim-opencv.py";
    fs::write(script, OPENCV)?;
    let call = format!("/usr/bin/python3 {script} NODE FILE");
    on_camera(&[(
        // The few calls of a run may stay.
        call.leak(),
        Makes::Bytes(FRAMES * 320 * 180 * 3),
    )])
}

/// It does not end by itself: it is told to when it has shown enough.
fn vlc() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    for path in [node.real(), node.ours()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    }
    let watch = |seat: &Seat| -> anyhow::Result<Outcome> {
        drop(fs::remove_file(FILE));
        let source = "v4l2://NODE:chroma=YUYV:width=320:height=180";
        let to = format!("#std{{access=file,mux=dummy,dst={FILE}}}");
        let user = [
            "setpriv",
            "--reuid",
            "nobody",
            "--regid",
            "nogroup",
            "--clear-groups",
        ];
        let program = [
            "env",
            "HOME=/tmp",
            "cvlc",
            "--no-audio",
            "--no-dbus",
            source,
            "--sout",
            &to,
        ];
        let mut client = seat.start(&[&user[..], &program].concat())?;
        let end = Instant::now() + PATIENCE;
        while fs::metadata(FILE).map_or(0, |file| file.len()) < (FRAMES * FRAME) as u64 {
            ensure!(
                Instant::now() < end && !client.has_ended()?,
                "{}: no frames: {}",
                seat.name,
                client.rest()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        client.signal(Signal::SIGTERM)?;
        let status = client.end(2 * AT_ONCE)?;
        let mut bytes = fs::read(FILE)?;
        bytes.truncate(FRAMES * FRAME);
        Ok(Outcome {
            status,
            said: client.rest(),
            bytes,
        })
    };
    let native = watch(&Seat::real(&node))?;
    check(&native, RAW)?;
    alike(&native, &watch(&served(&node)?)?)?;
    crate::setup::devices()
}

/// It asks for user pointers, falls back to MMAP, and then crashes in libc, on every node and natively too, before the first
/// picture.
fn zbarcam() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    let watch = |seat: &Seat| -> anyhow::Result<Vec<String>> {
        // It takes the largest picture that there is.
        crate::setup::devices()?;
        let words = [
            "zbarcam",
            "--verbose=20",
            "--raw",
            "--nodisplay",
            "--oneshot",
            "NODE",
        ];
        let (status, said) = seat.play(&words, PATIENCE)?;
        let mut lines: Vec<String> = said
            .lines()
            .filter(|line| line.contains("v4l2_"))
            .map(str::to_owned)
            .collect();
        lines.push(status.to_string());
        Ok(lines)
    };
    let native = watch(&Seat::real(&node));
    let served = served(&node).and_then(|seat| watch(&seat));
    crate::setup::devices()?;
    let native = native?;
    ensure!(
        native.iter().any(|line| line.contains("using I/O mode: MMAP")),
        "on the real node: {native:?}"
    );
    equal(&native, &served?)
}

/// libv4l's own preloaded library before and after the shim, and allocators that map early.
fn preloads() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    let library = |name: &str| format!("/usr/lib/x86_64-linux-gnu/{name}");
    for name in [
        "libv4l/v4l2convert.so",
        "libjemalloc.so.2",
        "libtcmalloc_minimal.so.4",
    ] {
        let path = library(name);
        let real = Seat::real(&node).with_preload(&[&path])?;
        for ours in [
            Seat::preloaded_with(&node, &[&path], &[])?,
            Seat::preloaded_with(&node, &[], &[&path])?,
        ] {
            for (call, makes) in [V4L2_CTL[0], YAVTA[0]] {
                compare(&real, &ours, call, makes, "").with_context(|| name.to_owned())?;
            }
        }
    }
    Ok(())
}
