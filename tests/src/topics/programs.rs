//! Programs that people have, by the command lines of their users, on the real node and on ours: what they say, how
//! they end, and the pictures they make of a camera that shows one still picture.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::client::{AT_ONCE, run, run_any};
use crate::daemon;
use crate::nodes::{Kind, vivid};
use crate::picture::Picture;
use crate::report::{equal, figure, same};
use crate::setup::{Test, VMALLOC};
use crate::shim::Seat;
use crate::video::{Node, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("programs::yavta_captures_into_user_pointers", yavta),
    (
        "programs::yavta_with_unaligned_user_pointers_ends_alike",
        yavta_unaligned,
    ),
    ("programs::v4l2_ctl_lists_the_same_controls", controls),
    ("programs::v4l2_ctl_all_tells_the_same_of_the_device", all),
    ("programs::v4l2_ctl_log_status_has_the_drivers_lines", log_status),
    ("programs::ustreamer_serves_the_same_snapshot", ustreamer),
    ("programs::gstreamer_captures_the_same_picture", gst_source),
];

/// For a suite with an OUTPUT node.
pub const OUTPUT_TESTS: &[(&str, Test)] = &[
    (
        "programs::yavta_gives_user_pointers_to_an_output_node",
        yavta_output,
    ),
    (
        "programs::v4l2_ctl_gives_user_pointers_to_an_output_node",
        ctl_output,
    ),
    (
        "programs::gstreamer_gives_user_pointers_to_an_output_node",
        gst_sink,
    ),
];

const PATIENCE: Duration = Duration::from_secs(60);

/// Without what differs from run to run: the node's name, addresses, and whatever has a decimal point.
fn plain(node: Node, text: &str) -> Vec<String> {
    let path = node.to_string();
    let word = |word: &str| {
        let address = word.starts_with("0x") && word.len() > 12;
        let fraction = word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
        match address || fraction {
            true => "#".to_owned(),
            false => word.to_owned(),
        }
    };
    let line = |line: &str| {
        let line = line.replace(&path, "NODE");
        line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
    };
    text.lines().map(line).collect()
}

/// Of yavta's lines about frames the sequence number is left out: a busy machine misses some.
fn without_sequence(mut lines: Vec<String>) -> Vec<String> {
    for line in &mut lines {
        let mut words: Vec<&str> = line.split(' ').collect();
        if words.len() > 5 && words[2].starts_with('[') {
            words.remove(4);
            *line = words.join(" ");
        }
    }
    lines
}

fn play_yavta(node: Node, arguments: &[&str], limit: &str) -> anyhow::Result<Vec<String>> {
    let path = node.to_string();
    // `timeout` ends it with status 124.
    let common = [limit, "yavta", "-u", "-n", "4", "-c4", "-f", "YUYV"];
    let (status, said) = run_any("timeout", &[&common, arguments, &[&path]].concat(), PATIENCE)?;
    let mut lines = without_sequence(plain(node, &said));
    lines.push(status.to_string());
    Ok(lines)
}

fn frames_of(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains(" B # # # fps ")).count()
}

fn yavta() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let lines = same(VMALLOC, |node| {
        let lines = play_yavta(node, &["-s", "320x180", "-F/tmp/yavta-#.raw"], "30")?;
        for frame in 0..4 {
            let file = format!("/tmp/yavta-{frame:06}.raw");
            ensure!(fs::read(&file)? == picture.bytes(), "{file} is not the picture");
            fs::remove_file(file)?;
        }
        Ok(lines)
    })?;
    ensure!(frames_of(&lines) == 4, "{lines:?}");
    Ok(())
}

/// yavta then frees a pointer that malloc has not given it, and dies of that; with all of its frames.
fn yavta_unaligned() -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| {
        play_yavta(node, &["-s", "320x180", "--offset", "16"], "30")
    })?;
    ensure!(frames_of(&lines) == 4, "{lines:?}");
    figure(format!(
        "yavta -u --offset 16: {}",
        lines.last().map_or("", String::as_str)
    ));
    Ok(())
}

fn ctl(node: Node, arguments: &[&str]) -> anyhow::Result<String> {
    let path = node.to_string();
    run("v4l2-ctl", &[&["-d", &path], arguments].concat(), PATIENCE)
}

/// Without the values that the driver changes by itself.
fn steady(lines: &mut [String]) {
    for line in lines {
        if (line.contains("volatile") || line.starts_with("read_only_integer"))
            && let Some((head, tail)) = line.split_once(" value=")
        {
            let rest = tail.split_once(' ').map_or("", |(_, rest)| rest);
            *line = format!("{head} value=# {rest}");
        }
    }
}

fn controls() -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| {
        let mut lines = plain(node, &ctl(node, &["--list-ctrls-menus"])?);
        steady(&mut lines);
        Ok(lines)
    })?;
    ensure!(
        lines.len() > 100 && lines.iter().any(|line| line.contains("u8_pixel_array")),
        "{lines:?}"
    );
    Ok(())
}

/// What v4l2-ctl finds out by way of sysfs and the media controller, not of the node: CUSE has no such link.
fn without_media(lines: Vec<String>) -> Vec<String> {
    let mut inside = false;
    let keep = |line: &String| {
        if ["Media Driver Info:", "Interface Info:", "Entity Info:"].contains(&line.as_str()) {
            inside = true;
        } else if line.starts_with("Priority:") {
            inside = false;
        }
        !inside && !line.starts_with("FAIL: could not find device")
    };
    lines.into_iter().filter(keep).collect()
}

fn all() -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| {
        let mut lines = without_media(plain(node, &ctl(node, &["--all"])?));
        steady(&mut lines);
        Ok(lines)
    })?;
    let names = |what: &str| lines.iter().any(|line| line.starts_with(what));
    ensure!(
        lines.len() > 100 && names("Format Video Capture:") && names("Priority:"),
        "{lines:?}"
    );
    Ok(())
}

fn log_status() -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| {
        let said = ctl(node, &["--log-status"])?;
        // "[    9.744540] vivid-000: Test Pattern: 75% Colorbar"
        let text = |line: &str| line.split_once("] ").map_or(line, |(_, text)| text).to_owned();
        Ok(said.lines().map(text).collect())
    })?;
    ensure!(
        lines.iter().any(|line| line.contains("START STATUS")) && lines.len() > 20,
        "{lines:?}"
    );
    Ok(())
}

/// A GET request on this machine: the header and the body.
fn fetch(port: u16, path: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(AT_ONCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("no header")?;
    let header = String::from_utf8_lossy(&answer[..end]).into_owned();
    Ok((header, answer.split_off(end + 4)))
}

/// A snapshot of ustreamer's, which gets its frames by this method (`MMAP`, `USERPTR`).
pub fn snapshot(seat: &Seat, method: &str) -> anyhow::Result<Vec<u8>> {
    let camera = ["ustreamer", "-d", "NODE", "-m", "YUYV", "-r", "320x180"];
    let server = ["-I", method, "-b", "3", "--host", "127.0.0.1", "--port", "8080"];
    let mut server = seat.start(&[&camera[..], &server].concat())?;
    let end = Instant::now() + PATIENCE;
    let picture = loop {
        // Until it listens, and then until it has a frame; before that it gives a picture of its own.
        match fetch(8080, "/snapshot") {
            Ok((header, body)) if header.contains("X-UStreamer-Online: true") => break body,
            _ if Instant::now() < end && !server.has_ended()? => {
                std::thread::sleep(Duration::from_millis(100))
            }
            other => bail!("no snapshot: {other:?}\n{}", server.rest()),
        }
    };
    server.signal(nix::sys::signal::Signal::SIGTERM)?;
    let status = server.end(AT_ONCE)?;
    let said = server.rest();
    ensure!(
        status.success() && said.contains(&format!("Using IO method: {method}")) && !said.contains("ERROR"),
        "{}: {status}: {said}",
        seat.name
    );
    Ok(picture)
}

fn ustreamer() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(VMALLOC, Kind::VideoCapture)?;
    let native = snapshot(&Seat::real(&node), "USERPTR")?;
    let served = snapshot(&Seat::plain(&node), "USERPTR")?;
    // It has asked for a frame rate of its own.
    crate::setup::devices()?;
    ensure!(
        native.len() > 1000 && native.starts_with(&[0xff, 0xd8]),
        "{} bytes, not a JPEG picture",
        native.len()
    );
    ensure!(native == served, "{} and {} bytes", native.len(), served.len());
    Ok(())
}

/// gst-launch with only the plugins that are needed: all of them take half a minute to look at.
pub fn gst_launch(pipeline: &str) -> anyhow::Result<String> {
    let words = gst_words(pipeline)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(words[0], &words[1..], 2 * PATIENCE)
}

/// The words of that call.
pub fn gst_words(pipeline: &str) -> anyhow::Result<Vec<String>> {
    let dir = "/tmp/gst";
    if !fs::exists(dir)? {
        fs::create_dir(dir)?;
        for plugin in [
            "video4linux2",
            "coreelements",
            "videoconvertscale",
            "videotestsrc",
        ] {
            let file = format!("libgst{plugin}.so");
            let there = format!("/usr/lib/x86_64-linux-gnu/gstreamer-1.0/{file}");
            ensure!(fs::exists(&there)?, "no {there}: tests/setup installs it");
            symlink(there, format!("{dir}/{file}"))?;
        }
    }
    let words = [
        "env",
        "GST_PLUGIN_SYSTEM_PATH_1_0=/tmp/gst",
        "GST_REGISTRY=/tmp/gst/registry.bin",
        "GST_REGISTRY_FORK=no",
        "gst-launch-1.0",
    ];
    let words = words.into_iter().chain(pipeline.split_whitespace());
    Ok(words.map(str::to_owned).collect())
}

fn gst_source() -> anyhow::Result<()> {
    daemon::shared()?;
    let capture = |node: Node| -> anyhow::Result<(Vec<u8>, Duration)> {
        let begin = Instant::now();
        gst_launch(&format!(
            "-q v4l2src device={node} io-mode=userptr num-buffers=4 ! video/x-raw,format=YUY2,width=320,height=180 ! \
             videoconvert ! video/x-raw,format=RGB ! filesink location=/tmp/gst/frames"
        ))?;
        let took = begin.elapsed();
        let bytes = fs::read("/tmp/gst/frames")?;
        fs::remove_file("/tmp/gst/frames")?;
        Ok((bytes, took))
    };
    capture(real(VMALLOC)).context("to warm up")?;
    let native = capture(real(VMALLOC)).context("on the real node")?;
    let served = capture(ours(VMALLOC)).context("on ours")?;
    crate::setup::devices()?;
    figure(format!(
        "gst-launch v4l2src, 4 frames: {} ms on the real node, {} ms on ours",
        native.1.as_millis(),
        served.1.as_millis()
    ));
    ensure!(
        native.0.len() == 4 * 320 * 180 * 3 && native.0.iter().any(|byte| *byte != native.0[0]),
        "{} bytes from the real node",
        native.0.len()
    );
    ensure!(
        native.0 == served.0,
        "{} and {} bytes, not the same",
        native.0.len(),
        served.0.len()
    );
    Ok(())
}

/// Plays on an OUTPUT node and on ours beside it.
fn on_output(play: impl FnMut(Node) -> anyhow::Result<Vec<String>>) -> anyhow::Result<Vec<String>> {
    daemon::shared()?;
    same(vivid(0, Kind::VideoOutput)?.number()?, play)
}

/// It waits for its last buffers, which a driver that shows frames gives back only for others: so it hangs, natively
/// too, until `timeout` ends it.
fn yavta_output() -> anyhow::Result<()> {
    let lines = on_output(|node| {
        let mut lines = play_yavta(node, &["-B", "output", "-s", "720x576"], "4")?;
        // Ended by a signal: how much of its output it has written by then is chance.
        lines.retain(|line| !line.contains(" B # # # fps "));
        Ok(lines)
    })?;
    ensure!(
        lines.iter().any(|line| line == "4 buffers requested."),
        "{lines:?}"
    );
    figure(format!(
        "yavta -u -B output: {}",
        lines.last().map_or("", String::as_str)
    ));
    Ok(())
}

fn ctl_output() -> anyhow::Result<()> {
    let lines = on_output(|node| {
        let begin = Instant::now();
        let said = ctl(
            node,
            &[
                "--stream-out-user=4",
                "--stream-count=50",
                "--stream-from=/dev/zero",
                "--verbose",
            ],
        )?;
        figure(format!(
            "{node}: v4l2-ctl --stream-out-user, 50 frames in {} ms",
            begin.elapsed().as_millis()
        ));
        // "out dqbuf: 0 seq: 1 bytesused: 829440 ts: 8.9 dropped: 1 (ts-monotonic, ts-src-eof)"
        let steady = |line: &str| {
            let words = line.split_whitespace();
            let kept = words.scan(String::new(), |before, word| {
                let word = if *before == "seq:" || word.contains('.') {
                    "#"
                } else {
                    word
                };
                word.clone_into(before);
                Some(word.to_owned())
            });
            let line = kept.collect::<Vec<_>>().join(" ");
            // What a busy machine was late for.
            let (frame, dropped) = line.split_once(" dropped: ").unwrap_or((&line, ""));
            format!(
                "{frame}{}",
                dropped.trim_start_matches(|c: char| c.is_ascii_digit())
            )
        };
        Ok(said.lines().map(steady).collect())
    })?;
    ensure!(lines.len() > 50, "{lines:?}");
    Ok(())
}

fn gst_sink() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = vivid(0, Kind::VideoOutput)?.number()?;
    let play = |node: Node| -> anyhow::Result<Vec<String>> {
        let said = gst_launch(&format!(
            "videotestsrc num-buffers=8 ! \
             video/x-raw,format=YUY2,width=720,height=576,framerate=25/1,interlace-mode=interleaved ! \
             v4l2sink device={node} io-mode=userptr"
        ))?;
        let mut lines = plain(node, &said);
        lines.retain(|line| !line.starts_with("Execution ended") && !line.starts_with("Redistribute"));
        Ok(lines)
    };
    play(real(number)).context("to warm up")?;
    equal(&play(real(number))?, &play(ours(number))?)?;
    Ok(())
}
