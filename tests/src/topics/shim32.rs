//! 32-bit programs under the 32-bit shim: Debian's own and small ones with either size of time_t, by mmap, by EXPBUF and
//! with their own memory, on our node, held against the real node without a shim.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::client::{AT_ONCE, Client, run, run_any};
use crate::daemon;
use crate::nodes::named;
use crate::picture::Picture;
use crate::report::{equal, figure};
use crate::setup::{CONTIG, Test, VMALLOC, both_real};
use crate::status;
use crate::video::{Node, Side, ours, real};

/// For the set `cameras`.
pub const TESTS: &[(&str, Test)] = &[
    ("shim32::mapped_captures_are_the_picture", captures),
    ("shim32::mappings_give_what_the_kernel_gives", mappings),
    ("shim32::exported_buffers_are_the_picture", exports),
    ("shim32::whole_pages_are_adopted", adopted),
    ("shim32::programs_of_both_sizes_have_one_library_path", both_sizes),
];

/// For the set `m2m`.
pub const M2M: &[(&str, Test)] = &[("shim32::vim2m_converts_to_the_same_bytes", convert)];

const PATIENCE: Duration = Duration::from_secs(60);
const FILE: &str = "/tmp/shim32";
const FRAMES: usize = 6;
/// The same program three times: 64 bits, 32, and 32 with 64-bit times and offsets, which calls other functions of libc.
const BUILDS: [&str; 3] = ["mmap_capture", "mmap_capture-i386", "mmap_capture-i386-time64"];

/// For LD_PRELOAD. Each dynamic linker has its own word for `$LIB`.
fn library() -> anyhow::Result<String> {
    let shim = std::env::current_dir()?.join("target/shim");
    for lib in ["lib/x86_64-linux-gnu", "lib/i386-linux-gnu"] {
        let file = shim.join(lib).join("libvidcompat.so");
        ensure!(file.exists(), "no {}: run tests/shim --i386", file.display());
    }
    Ok(format!("{}/$LIB/libvidcompat.so", shim.display()))
}

/// What a program says, after `status=` for how it ended, and what it writes to [`FILE`]: under the shim if the node is
/// ours, else without.
fn outcome(program: &str, node: Node, arguments: &[&str]) -> anyhow::Result<(Vec<String>, Vec<u8>)> {
    drop(fs::remove_file(FILE));
    let (status, said) = match node.side {
        Side::Real => run_any(program, arguments, PATIENCE)?,
        Side::Ours => {
            let preload = format!("LD_PRELOAD={}", library()?);
            run_any("env", &[&[&preload, program], arguments].concat(), PATIENCE)?
        }
    };
    let mut lines = vec![format!("status={status}")];
    // The node's own name is no difference.
    let path = node.to_string();
    lines.extend(said.lines().map(|line| line.replace(&path, "/dev/videoN")));
    let bytes = if Path::new(FILE).exists() {
        fs::read(FILE)?
    } else {
        Vec::new()
    };
    Ok((lines, bytes))
}

/// The frames that `program` captures from `node`; an error if it ends in any other way.
fn capture(program: &str, node: Node, memory: &str) -> anyhow::Result<Vec<u8>> {
    let path = node.to_string();
    let (frames, to) = (format!("--stream-count={FRAMES}"), format!("--stream-to={FILE}"));
    let stream = format!("--stream-{memory}=3");
    let yavta = [
        "-n",
        "3",
        "-c6",
        "-f",
        "YUYV",
        "-s",
        "320x180",
        "-F/tmp/shim32",
        &path,
    ];
    let arguments: Vec<&str> = match (program.split('-').next(), memory) {
        (Some("v4l2"), _) => vec!["-d", &path, &stream, &frames, &to],
        (Some("yavta"), "user") => [&["-u"], &yavta[..]].concat(),
        (Some("yavta"), _) => yavta.to_vec(),
        (Some("mmap_capture"), "export") => vec!["-d", &path, "-n", "6", "-e", "-o", FILE],
        _ => vec!["-d", &path, "-n", "6", "-o", FILE],
    };
    let (lines, bytes) = outcome(program, node, &arguments)?;
    ensure!(
        lines[0].ends_with(" 0"),
        "{program} {arguments:?} on {node}: {lines:#?}"
    );
    Ok(bytes)
}

/// Each of `programs` with each kind of memory, on both cameras and both sides.
fn all_are_the_picture(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    daemon::shared()?;
    // Each camera's own: tests before may have left them with other pictures.
    let of_vmalloc = Picture::take()?.bytes().repeat(FRAMES);
    let of_contig = capture("v4l2-ctl", real(CONTIG), "mmap")?;
    ensure!(of_contig.len() == of_vmalloc.len(), "{} bytes", of_contig.len());
    for (program, memory) in programs {
        for (number, right) in [(VMALLOC, &of_vmalloc), (CONTIG, &of_contig)] {
            for node in [real(number), ours(number)] {
                // The real dma-contig camera takes no user pointers.
                let is_real = node.side == Side::Real || both_real();
                if *memory == "user" && number == CONTIG && is_real {
                    continue;
                }
                let frames = capture(program, node, memory)?;
                ensure!(
                    frames == *right,
                    "{program} ({memory}) on {node}: {} bytes, not the picture",
                    frames.len()
                );
            }
        }
    }
    figure(format!(
        "{} programs under the shim, both cameras: {FRAMES} frames each, byte-equal",
        programs.len()
    ));
    Ok(())
}

fn captures() -> anyhow::Result<()> {
    all_are_the_picture(&[
        ("v4l2-ctl-i386", "mmap"),
        ("yavta-i386", "mmap"),
        ("mmap_capture-i386", "mmap"),
        ("mmap_capture-i386-time64", "mmap"),
        // With memory of their own: malloc's, and whole pages, which the shim may move (yavta).
        ("v4l2-ctl-i386", "user"),
        ("yavta-i386", "user"),
        ("capture_userptr-i386", "user"),
        ("capture_userptr-i386-time64", "user"),
    ])
}

fn exports() -> anyhow::Result<()> {
    all_are_the_picture(&BUILDS.map(|program| (program, "export")))?;
    for program in BUILDS {
        same(program, VMALLOC, &["-e"])?;
        same(program, CONTIG, &["-e"])?;
    }
    Ok(())
}

/// `V4L2_BUF_CAP_SUPPORTS_USERPTR` and `V4L2_BUF_CAP_SUPPORTS_REQUESTS`.
const USERPTR: u32 = 2;
const REQUESTS: u32 = 8;

/// malloc gives whole pages of their own for as much as a frame, and has no heap with room for one: what lies there is not
/// adopted, and where the queue has the device's own buffers (Linux 6.1) then none is, for one is in use.
const PAGES_OF_ITS_OWN: [&str; 2] = ["MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TOP_PAD_=0"];

/// yavta's buffers begin on a page.
fn adopted() -> anyhow::Result<()> {
    daemon::shared()?;
    if both_real() {
        return Ok(());
    }
    let right = Picture::take()?.bytes().repeat(FRAMES);
    let preload = format!("LD_PRELOAD={}", library()?);
    let path = ours(VMALLOC).to_string();
    let yavta = |count: &str, file: &str| {
        let arguments = [
            PAGES_OF_ITS_OWN[0],
            PAGES_OF_ITS_OWN[1],
            &preload,
            "yavta-i386",
            "-u",
            "-n3",
            count,
            "-fYUYV",
            "-s320x180",
            file,
            &path,
        ];
        arguments.map(str::to_owned)
    };
    // For as long as it takes to see how its buffers are served.
    let long = yavta("-c100000", "-F/dev/null");
    let mut client = Client::start("env", &long.each_ref().map(String::as_str))?;
    let end = Instant::now() + AT_ONCE;
    loop {
        let queue = status::queue(ours(VMALLOC), client.pid(), "video capture");
        let buffers = queue.iter().flat_map(|queue| queue["buffers"].as_array());
        let adopted = buffers
            .flatten()
            .filter(|buffer| buffer["planes"][0]["how"] == "adopted");
        if adopted.count() == 3 {
            break;
        }
        ensure!(
            Instant::now() < end && !client.has_ended()?,
            "{queue:?}: {}",
            client.line_if_any().unwrap_or_default()
        );
        thread::sleep(Duration::from_millis(50));
    }
    client.signal(Signal::SIGKILL)?;
    client.end(AT_ONCE)?;
    // And the frames are there.
    drop(fs::remove_file(FILE));
    let short = yavta("-c6", "-F/tmp/shim32");
    run("env", &short.each_ref().map(String::as_str), PATIENCE)?;
    ensure!(
        fs::read(FILE)? == right,
        "yavta-i386 with adopted buffers on {path}: not the picture"
    );
    Ok(())
}

/// What `program` says is the same on both sides.
fn same(program: &str, number: u32, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    let says = |node: Node| -> anyhow::Result<Vec<String>> {
        let path = node.to_string();
        let (lines, _) = outcome(program, node, &[&["-d", &path], arguments].concat())?;
        // Ours has no requests, and takes user pointers where the real one does not.
        let leave_out = REQUESTS | if number == CONTIG { USERPTR } else { 0 };
        lines
            .into_iter()
            .map(|line| match line.split_once(", capabilities 0x") {
                Some((count, bits)) => {
                    let bits = u32::from_str_radix(bits, 16)?;
                    Ok(format!("{count}, capabilities {:#x}", bits & !leave_out))
                }
                None => Ok(line),
            })
            .collect()
    };
    let (mut native, served) = (says(real(number))?, says(ours(number))?);
    // Since Linux 6.8 the kernel finds a buffer by bits 12 to 29 of the offset alone (`__find_plane_by_offset`,
    // videobuf2-core.c). Ours wants the offset of QUERYBUF, as every kernel before.
    if let Some(line) = native
        .iter_mut()
        .find(|line| line.starts_with("4 GiB further: mapped"))
    {
        *line = "4 GiB further: Invalid argument".into();
    }
    equal(&native, &served).with_context(|| format!("{program} {arguments:?} on /dev/video{number}"))?;
    Ok(native)
}

fn mappings() -> anyhow::Result<()> {
    daemon::shared()?;
    for program in BUILDS {
        for how in ["mmap", "mmap64", "syscall"] {
            let said = same(program, VMALLOC, &["-m", how, "-c"])?;
            // What is compared is there.
            ensure!(
                said.iter()
                    .any(|line| line == "read and write: mapped, the buffer, errno 0")
                    && said.iter().any(|line| line == "private: Invalid argument"),
                "{program}, {how}: {said:#?}"
            );
        }
        same(program, CONTIG, &["-m", "mmap64", "-c"])?;
    }
    Ok(())
}

/// The commands named `-i386` are 64-bit shells first, which go on as 32-bit programs. A dynamic linker that finds no
/// library for its own size says so on stderr.
fn both_sizes() -> anyhow::Result<()> {
    daemon::shared()?;
    let preload = format!("LD_PRELOAD={}", library()?);
    for program in ["v4l2-ctl", "v4l2-ctl-i386"] {
        let (status, said) = run_any("env", &[&preload, program, "--version"], PATIENCE)?;
        ensure!(
            status.success() && said.starts_with("v4l2-ctl ") && !said.contains("ld.so"),
            "{program}: {status}: {said}"
        );
        // It is really there, and the one of this size.
        let (_, said) = run_any(
            "env",
            &["LD_DEBUG=files", &preload, program, "--version"],
            PATIENCE,
        )?;
        let lib = if program.ends_with("i386") {
            "/lib/i386-linux-gnu/libvidcompat.so"
        } else {
            "/lib/x86_64-linux-gnu/libvidcompat.so"
        };
        ensure!(
            said.contains(lib) && !said.contains("cannot be preloaded"),
            "{program}: {said}"
        );
    }
    Ok(())
}

fn convert() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    let input = "/tmp/shim32-input";
    // Every byte value, in an order that is no period of a line.
    let bytes = (0..320 * 180 * 3 * FRAMES).map(|at| (at * 7 + at / 251).to_le_bytes()[0]);
    fs::write(input, bytes.collect::<Vec<u8>>())?;
    let convert = |program: &str, node: Node| -> anyhow::Result<Vec<u8>> {
        let path = node.to_string();
        let (from, to) = (format!("--stream-from={input}"), format!("--stream-to={FILE}"));
        let count = format!("--stream-count={FRAMES}");
        let arguments = [
            "-d",
            &path,
            "--set-fmt-video-out=width=320,height=180,pixelformat=RGB3",
            "--set-fmt-video=pixelformat=YUYV",
            "--stream-out-mmap=3",
            "--stream-mmap=3",
            &count,
            &from,
            &to,
        ];
        let (lines, bytes) = outcome(program, node, &arguments)?;
        ensure!(lines[0].ends_with(" 0"), "{program} on {node}: {lines:#?}");
        Ok(bytes)
    };
    let right = convert("v4l2-ctl", real(number))?;
    ensure!(!right.is_empty(), "nothing was converted");
    for node in [real(number), ours(number)] {
        ensure!(
            convert("v4l2-ctl-i386", node)? == right,
            "v4l2-ctl-i386 on {node}: other bytes"
        );
    }
    Ok(())
}
