//! 32-bit programs on our 64-bit daemon: Debian's own and small ones with either size of time_t, on the real node and on
//! ours, their bytes held against those of a 64-bit program.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::run;
use crate::daemon;
use crate::nodes::{Kind, named, vivid};
use crate::picture::Picture;
use crate::report::{equal, figure};
use crate::setup::{CONTIG, Test, VMALLOC};
use crate::video::{Node, ours, real};

/// For the set `cameras`.
pub const TESTS: &[(&str, Test)] = &[
    ("programs32::captures_are_the_picture", captures),
    ("programs32::controls_of_every_type_are_the_same", controls),
];

/// For the set `kinds`.
pub const PLANES: &[(&str, Test)] = &[("programs32::captures_of_two_planes_are_the_same", two_planes)];

/// For the set `m2m`.
pub const M2M: &[(&str, Test)] = &[("programs32::vim2m_converts_to_the_same_bytes", convert)];

const PATIENCE: Duration = Duration::from_secs(60);
const FILE: &str = "/tmp/programs32";
const FRAMES: usize = 6;

/// What `program` captures from `node`.
fn capture(program: &str, node: Node) -> anyhow::Result<Vec<u8>> {
    let (path, count) = (node.to_string(), FRAMES.to_string());
    let (to, frames) = (format!("--stream-to={FILE}"), format!("--stream-count={count}"));
    let arguments: &[&str] = match program.split('-').next() {
        Some("v4l2") => &["-d", &path, "--stream-user=3", &frames, &to],
        Some("yavta") => &[
            "-u",
            "-n",
            "3",
            "-c6",
            "-f",
            "YUYV",
            "-s",
            "320x180",
            "-F/tmp/programs32",
            &path,
        ],
        _ => &["-d", &path, "-n", &count, "-w", "320", "-h", "180", "-o", FILE],
    };
    drop(fs::remove_file(FILE));
    run(program, arguments, PATIENCE).with_context(|| format!("{program} on {node}"))?;
    fs::read(FILE).with_context(|| format!("{program} on {node} wrote nothing"))
}

fn captures() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let right = picture.bytes().repeat(FRAMES);
    let programs = [
        "v4l2-ctl-i386",
        "yavta-i386",
        "capture_userptr-i386",
        "capture_userptr-i386-time64",
    ];
    for program in programs {
        for node in [real(VMALLOC), ours(VMALLOC)] {
            ensure!(
                capture(program, node)? == right,
                "{program} on {node}: not the picture"
            );
        }
        // The real one refuses USERPTR; its picture is the same test pattern.
        ensure!(
            capture(program, ours(CONTIG))?.len() == right.len(),
            "{program} on {}: not {FRAMES} frames",
            ours(CONTIG)
        );
    }
    figure(format!(
        "{} 32-bit programs: {FRAMES} frames each, byte-equal",
        programs.len()
    ));
    Ok(())
}

fn controls() -> anyhow::Result<()> {
    daemon::shared()?;
    let says = |node: Node| -> anyhow::Result<Vec<String>> {
        let path = node.to_string();
        let ctl = |arguments: &[&str]| run("v4l2-ctl-i386", &[&["-d", &path], arguments].concat(), PATIENCE);
        ctl(&["-c", "string=  ,integer_64_bits=0,bitmask=0x80002000"])?;
        [
            &["-c", "string=32bi"][..],
            &["-C", "string,bitmask,integer_64_bits,boolean,menu,u8_pixel_array"],
            &["-c", "integer_64_bits=-123456789012,bitmask=0x402010"],
            &["-C", "integer_64_bits,bitmask"],
            &["--list-formats-ext"],
            &["--get-fmt-video", "--get-parm", "--get-input", "--list-inputs"],
        ]
        .into_iter()
        .map(ctl)
        .collect()
    };
    let (native, served) = (says(real(VMALLOC))?, says(ours(VMALLOC))?);
    equal(&native, &served)?;
    ensure!(native[1].contains("'32bi'"), "the string was not set: {native:?}");
    ensure!(native[3].contains("-123456789012"), "{native:?}");
    Ok(())
}

fn two_planes() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(1, Kind::VideoCapture)?;
    let (native, served) = (
        node.real().display().to_string(),
        node.ours().display().to_string(),
    );
    let ctl = |program: &str, path: &str, arguments: &[&str]| {
        run(program, &[&["-d", path], arguments].concat(), PATIENCE)
            .with_context(|| format!("{program} {arguments:?} on {path}"))
    };
    ctl("v4l2-ctl", &native, &["-i", "0"])?;
    ctl(
        "v4l2-ctl",
        &native,
        &["-v", "width=320,height=180,pixelformat=NM16"],
    )?;
    ctl("v4l2-ctl", &native, &["-c", "osd_text_mode=2"])?;
    let capture = |program: &str, path: &str| -> anyhow::Result<Vec<u8>> {
        drop(fs::remove_file(FILE));
        let to = format!("--stream-to={FILE}");
        ctl(program, path, &["--stream-user=3", "--stream-count=4", &to])?;
        Ok(fs::read(FILE)?)
    };
    let right = capture("v4l2-ctl", &native)?;
    ensure!(right.len() == 4 * 320 * 180 * 2, "{} bytes of NV16M", right.len());
    for (program, path) in [
        ("v4l2-ctl", &served),
        ("v4l2-ctl-i386", &native),
        ("v4l2-ctl-i386", &served),
    ] {
        ensure!(
            capture(program, path)? == right,
            "{program} on {path}: other bytes"
        );
    }
    ctl("v4l2-ctl", &native, &["-c", "osd_text_mode=0"])?;
    Ok(())
}

fn convert() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    let input = "/tmp/programs32-input";
    // Every byte value, in an order that is no period of a line.
    let bytes = (0..320 * 180 * 3 * 6).map(|at: usize| (at * 7 + at / 251).to_le_bytes()[0]);
    fs::write(input, bytes.collect::<Vec<u8>>())?;
    let convert = |program: &str, node: Node| -> anyhow::Result<Vec<u8>> {
        drop(fs::remove_file(FILE));
        let path = node.to_string();
        let arguments = ["-d", &path, "-i", input, "-o", FILE, "-F", "RGB3", "-f", "YUYV"];
        run(program, &arguments, PATIENCE).with_context(|| format!("{program} on {node}"))?;
        Ok(fs::read(FILE)?)
    };
    let right = convert("m2m_userptr", real(number))?;
    ensure!(!right.is_empty(), "nothing was converted");
    for program in ["m2m_userptr-i386", "m2m_userptr-i386-time64"] {
        for node in [real(number), ours(number)] {
            ensure!(
                convert(program, node)? == right,
                "{program} on {node}: other bytes"
            );
        }
    }
    Ok(())
}
