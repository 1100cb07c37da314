//! Programs that want MMAP, on a node that has none: CUSE can map nothing, so REQBUFS(MMAP) and EXPBUF are EINVAL and the
//! capabilities say so. Which of them find another way by themselves? (The others are for the client shim.)

use std::fs;
use std::time::Duration;

use anyhow::ensure;

use super::programs::gst_launch;
use crate::client::run_any;
use crate::daemon;
use crate::report::figure;
use crate::setup::{Test, VMALLOC, both_real};
use crate::video::{Node, ours, real};

// Few programs in each: an emulated processor takes its time to load them.
pub const TESTS: &[(&str, Test)] = &[
    ("fallback::ffmpeg_gives_up", || table(&["ffmpeg"])),
    ("fallback::fswebcam_reads", || table(&["fswebcam"])),
    ("fallback::mplayer_gives_up", || table(&["mplayer"])),
    ("fallback::v4l2_ctl_and_yavta_give_up_mmap", || {
        table(&["v4l2-ctl", "yavta"])
    }),
    ("fallback::ustreamer_gives_up_mmap", || table(&["ustreamer"])),
    ("fallback::gstreamer_gives_up_auto_and_mmap", || {
        table(&["gst auto", "gst mmap"])
    }),
    (
        "fallback::gstreamer_gives_up_dmabuf_and_reads_when_told_to",
        || table(&["gst dmabuf", "gst rw"]),
    ),
];

const PATIENCE: Duration = Duration::from_secs(30);
/// Where each program puts what it captures.
const PICTURE: &str = "/tmp/fallback-picture";

/// What a program makes of a node without MMAP.
#[derive(Debug, PartialEq, Eq)]
enum Without {
    /// It captures all the same, by read().
    Reads,
    /// It gives up with these words.
    Says(&'static str),
}

/// Program and arguments, with `NODE` for the node's path; what it does on ours.
const PROGRAMS: &[(&[&str], Without)] = &[
    (
        &[
            "ffmpeg",
            "-v",
            "error",
            "-f",
            "v4l2",
            "-framerate",
            "30",
            "-video_size",
            "320x180",
            "-i",
            "NODE",
            "-frames:v",
            "3",
            "-f",
            "rawvideo",
            "-y",
            PICTURE,
        ],
        Without::Says("NODE: Invalid argument"),
    ),
    (
        &[
            "fswebcam",
            "-d",
            "NODE",
            "-r",
            "320x180",
            "-S",
            "1",
            "--no-banner",
            PICTURE,
        ],
        Without::Reads,
    ),
    (
        &[
            "mplayer",
            "tv://",
            "-tv",
            "driver=v4l2:device=NODE:width=320:height=180:outfmt=yuy2",
            "-nosound",
            "-frames",
            "2",
            "-vo",
            "yuv4mpeg:file=/tmp/fallback-picture",
        ],
        Without::Says("ioctl request buffers failed: Invalid argument"),
    ),
    (
        &[
            "v4l2-ctl",
            "-d",
            "NODE",
            "--stream-mmap=4",
            "--stream-count=4",
            "--stream-to",
            PICTURE,
        ],
        Without::Says("VIDIOC_REQBUFS returned -1 (Invalid argument)"),
    ),
    (
        &[
            "yavta",
            "-n",
            "4",
            "-c4",
            "-f",
            "YUYV",
            "-s",
            "320x180",
            "-F/tmp/fallback-picture",
            "NODE",
        ],
        Without::Says("Unable to request buffers: Invalid argument (22)."),
    ),
    (
        &[
            "timeout",
            "6",
            "ustreamer",
            "-d",
            "NODE",
            "-m",
            "YUYV",
            "-r",
            "320x180",
            "-I",
            "MMAP",
            "--host",
            "127.0.0.1",
            "--port",
            "8081",
        ],
        Without::Says("Device 'NODE' doesn't support V4L2_MEMORY_MMAP: Invalid argument"),
    ),
    (
        &["gst", "auto"],
        Without::Says("Failed to allocate required memory."),
    ),
    (
        &["gst", "mmap"],
        Without::Says("Failed to allocate required memory."),
    ),
    (
        &["gst", "dmabuf"],
        Without::Says("Failed to allocate required memory."),
    ),
    (&["gst", "rw"], Without::Reads),
];

/// Runs one: whether there is a picture afterwards, and what it has said.
fn play(program: &[&str], node: Node) -> anyhow::Result<(bool, String)> {
    // It may be there from the one before.
    let _ = fs::remove_file(PICTURE);
    let path = node.to_string();
    let words: Vec<String> = program.iter().map(|word| word.replace("NODE", &path)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = if words[0] == "gst" {
        let pipeline = format!(
            "-q v4l2src device={node} io-mode={} num-buffers=4 ! video/x-raw,format=YUY2,width=320,height=180 ! \
             filesink location={PICTURE}",
            words[1]
        );
        // The error has the output of the program in it.
        gst_launch(&pipeline).unwrap_or_else(|error| error.to_string())
    } else {
        run_any(words[0], &words[1..], PATIENCE)?.1
    };
    let made = fs::metadata(PICTURE).is_ok_and(|file| file.len() > 0);
    Ok((made, said.replace(&path, "NODE")))
}

fn table(names: &[&str]) -> anyhow::Result<()> {
    daemon::shared()?;
    let mut wrong = vec![];
    let mut played = 0;
    for (program, expected) in PROGRAMS {
        let name = match program[0] {
            "gst" => format!("gst {}", program[1]),
            "timeout" => program[2].to_owned(),
            name => name.to_owned(),
        };
        if !names.contains(&name.as_str()) {
            continue;
        }
        played += 1;
        // The same words make a picture where there is MMAP; ustreamer serves until it is ended, and makes no file.
        let (native, said) = play(program, real(VMALLOC))?;
        if !native && name != "ustreamer" {
            wrong.push(format!("{name} makes nothing of the real node: {said}"));
        }
        if both_real() {
            continue;
        }
        let (made, said) = play(program, ours(VMALLOC))?;
        let right = match expected {
            Without::Reads => made,
            Without::Says(words) => !made && said.contains(words),
        };
        if !right {
            wrong.push(format!(
                "{name}: expected {expected:?}, a picture: {made}, and it says: {said}"
            ));
        }
        figure(match expected {
            Without::Reads => format!("without MMAP, {name}: captures by read()"),
            Without::Says(words) => format!("without MMAP, {name}: gives up: {words}"),
        });
    }
    crate::setup::devices()?;
    ensure!(played == names.len(), "{played} of {names:?}");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
