//! What `vidcompat doctor`, `status --watch` and `metrics` say, held against what the devices do: a device that has USERPTR of
//! its own and one that has not, before there is a daemon and then with one, as root and as somebody else.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use serde_json::Value;
use vidcompat_proto::abi::v4l2::V4l2RequestBuffers;

use crate::client::{AT_ONCE, Client, run, run_any};
use crate::daemon::Daemon;
use crate::helper::NOBODY;
use crate::report::figure;
use crate::setup::{CONTIG, SPARE, Test, both_real, is_6_1};
use crate::sys::{self, Pages};
use crate::video::{CAPTURE, command, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "doctor::says_of_each_device_what_reqbufs_says_before_and_after",
        before_and_after,
    ),
    ("doctor::leaves_a_device_that_is_in_use_alone", in_use),
    ("doctor::says_what_another_user_may_not_see_or_open", another_user),
    ("doctor::says_what_stands_in_the_way", in_the_way),
    (
        "doctor::rates_latency_and_metrics_are_those_of_the_device",
        figures,
    ),
    ("doctor::the_journal_gets_fields", journal),
    ("doctor::a_bug_report_has_every_part", bug_report),
];

/// A daemon of our own has sockets of its own: the suite's has the usual ones.
const FOLDER: &str = "/run/vidcompat-doctor";
const SOCKET: &str = "/run/vidcompat-doctor/control.sock";
const METRICS: &str = "/run/vidcompat-doctor/metrics.sock";

fn daemon(numbers: &[u32]) -> anyhow::Result<Daemon> {
    let paths: Vec<_> = numbers.iter().map(|number| real(*number).to_string()).collect();
    let mut args = vec!["--control", SOCKET, "--metrics", METRICS];
    for path in &paths {
        args.extend(["--device", path]);
    }
    Daemon::start(&args)
}

/// Exit status 0, and the findings by what they are about.
fn examined(words: &[&str]) -> anyhow::Result<(bool, BTreeMap<String, Value>)> {
    let (program, more) = words.split_first().context("no program")?;
    let (status, text) = run_any(program, more, 2 * AT_ONCE)?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(matches!(status.code(), Some(0 | 1)), "{status}: {text}");
    ensure!(report["works"] == status.success(), "{status}: {text}");
    let findings = report["findings"].as_array().context("no findings")?;
    let about = |finding: &Value| Some((finding["about"].as_str()?.to_owned(), finding.clone()));
    Ok((status.success(), findings.iter().filter_map(about).collect()))
}

fn doctor() -> anyhow::Result<(bool, BTreeMap<String, Value>)> {
    examined(&["vidcompat", "doctor", "--json", "--control", SOCKET])
}

fn found<'a>(findings: &'a BTreeMap<String, Value>, about: &str) -> anyhow::Result<(&'a str, &'a str)> {
    let finding = findings
        .get(about)
        .with_context(|| format!("nothing of {about}: {findings:#?}"))?;
    let text = |key: &str| finding[key].as_str().unwrap_or_default();
    Ok((text("level"), text("what")))
}

/// Does REQBUFS give buffers of this memory? They are given back.
fn takes(path: &Path, memory: u32) -> anyhow::Result<bool> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut request = V4l2RequestBuffers {
        count: 1,
        buf_type: CAPTURE,
        memory,
        ..V4l2RequestBuffers::default()
    };
    match sys::ioctl(&file, command::REQBUFS, &mut request) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno).context("REQBUFS"),
    }
}

fn before_and_after() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    crate::daemon::stop_shared();
    let (works, findings) = doctor()?;
    let mut needed = false;
    for number in [SPARE, CONTIG] {
        let path = real(number).path();
        let (level, what) = found(&findings, &path.display().to_string())?;
        for (memory, name) in [
            (memory::USERPTR, "USERPTR, "),
            (memory::MMAP, "MMAP"),
            (memory::DMABUF, "DMABUF"),
        ] {
            let can = takes(&path, memory)?;
            ensure!(
                what.contains(name) == can,
                "{}: {name} {can}: {what}",
                path.display()
            );
            if memory == memory::USERPTR {
                ensure!((level == "ok") == can, "{}: {level}: {what}", path.display());
                needed |= !can;
            }
        }
    }
    ensure!(needed, "every device here has USERPTR");
    ensure!(!works, "a legacy program cannot work without a daemon");
    ensure!(found(&findings, "daemon")?.0 == "problem", "{findings:#?}");
    ensure!(found(&findings, "cuse")?.0 == "ok", "{findings:#?}");
    // What only newer kernels have.
    for about in ["survival", "dma-heap", "udmabuf", "mappings"] {
        let expected = if is_6_1() { "warning" } else { "ok" };
        ensure!(found(&findings, about)?.0 == expected, "{about}: {findings:#?}");
    }

    let _daemon = daemon(&[CONTIG])?;
    let (works, findings) = doctor()?;
    let (level, what) = found(&findings, &real(CONTIG).to_string())?;
    ensure!(
        level == "ok" && what.contains(&ours(CONTIG).to_string()),
        "{level}: {what}"
    );
    ensure!(
        takes(&ours(CONTIG).path(), memory::USERPTR)?,
        "it says that ours takes USERPTR"
    );
    ensure!(found(&findings, "daemon")?.0 == "ok", "{findings:#?}");
    let problem = |finding: &&Value| finding["level"] == "problem";
    ensure!(
        works,
        "{:#?}",
        findings.values().filter(problem).collect::<Vec<_>>()
    );
    // For people: a line each, and the sum.
    let page = run("vidcompat", &["doctor", "--control", SOCKET], 2 * AT_ONCE)?;
    ensure!(page.lines().count() >= findings.len() + 2, "{page}");
    ensure!(
        page.contains("\nA legacy program works on every device"),
        "{page}"
    );
    Ok(())
}

fn in_use() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let video = real(SPARE).open()?;
    let size = video.sizeimage()?;
    let pages = Pages::new(size as usize)?;
    video.reqbufs(1)?;
    video.qbuf(0, pages.at(0), size)?;
    video.streamon()?;
    let (_, findings) = doctor()?;
    let (level, what) = found(&findings, &real(SPARE).to_string())?;
    let us = format!("in use by process {}", std::process::id());
    ensure!(level == "warning" && what.contains(&us), "{level}: {what}");
    // It was left alone.
    video.dqbuf()?;
    Ok(())
}

fn another_user() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let _daemon = daemon(&[CONTIG])?;
    let id = NOBODY.to_string();
    let words = [
        "setpriv",
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "vidcompat",
        "doctor",
        "--json",
        "--control",
        SOCKET,
    ];
    let (works, findings) = examined(&words)?;
    ensure!(!works, "it may open no node");
    for (about, level, part) in [
        ("user", "warning", "not in video"),
        ("daemon", "ok", "only root is told"),
        ("/dev/video0", "problem", "may not open it"),
        ("/dev/video1", "problem", "may not open our node /dev/video65"),
        ("kernel log", "warning", "only root"),
    ] {
        let told = found(&findings, about)?;
        ensure!(told.0 == level && told.1.contains(part), "{about}: {told:?}");
    }
    // With the right to open both it would work.
    let nodes = [real(CONTIG).path(), ours(CONTIG).path()];
    let before = fs::metadata(&nodes[0])?;
    for node in &nodes {
        chown(node, Some(NOBODY), None)?;
    }
    let told = examined(&words);
    chown(&nodes[0], Some(before.uid()), Some(before.gid()))?;
    let findings = told?.1;
    let (level, what) = found(&findings, "/dev/video1")?;
    ensure!(
        level == "ok" && what.contains("programs use /dev/video65"),
        "{level}: {what}"
    );
    Ok(())
}

fn in_the_way() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    crate::daemon::stop_shared();
    let cuse = "/dev/cuse";
    let aside = "/dev/cuse-aside";
    fs::rename(cuse, aside)?;
    // Another driver's node where ours would be.
    let there = ours(CONTIG).path();
    std::os::unix::fs::symlink("/dev/null", &there)?;
    let told = doctor();
    fs::remove_file(&there)?;
    fs::rename(aside, cuse)?;
    let (works, findings) = told?;
    ensure!(!works, "without /dev/cuse");
    let (level, what) = found(&findings, "cuse")?;
    ensure!(
        level == "problem" && what.contains("/dev/cuse is not there"),
        "{level}: {what}"
    );
    let (level, what) = found(&findings, "/dev/video1")?;
    ensure!(
        level == "problem" && what.contains("/dev/video65, where our node would be, is another device (1:3)"),
        "{level}: {what}"
    );
    Ok(())
}

/// A value of the metrics, by all that stands before it.
fn metric(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in\n{text}"))?.parse()?)
}

fn figures() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let _daemon = daemon(&[SPARE])?;
    let video = ours(SPARE).open()?;
    let size = video.sizeimage()?;
    let pages = Pages::new(4 * size.next_multiple_of(4096) as usize)?;
    let at = |index: u32| pages.at((index * size.next_multiple_of(4096)) as usize);
    ensure!(video.reqbufs(4)? == 4, "not four buffers");
    for index in 0..4 {
        video.qbuf(index, at(index), size)?;
    }
    video.streamon()?;
    let watch = Client::start("vidcompat", &["status", "--watch", "--json", "--control", SOCKET])?;
    let begun = Instant::now();
    let mut frames = 0_u32;
    while begun.elapsed() < Duration::from_secs(5) {
        let buffer = video.dqbuf()?;
        frames += 1;
        video.qbuf(buffer.index, at(buffer.index), size)?;
    }
    let rate = f64::from(frames) / begun.elapsed().as_secs_f64();
    // Once more for people, while it streams; nothing is dequeued meanwhile.
    let page = run("vidcompat", &["status", "--control", SOCKET], AT_ONCE)?;
    ensure!(page.contains("capture USERPTR 4 copied"), "{page}");
    drop(watch.signal(nix::sys::signal::Signal::SIGTERM));
    let looks: Vec<Value> = watch
        .rest()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    ensure!(looks.len() >= 4, "{} looks in five seconds", looks.len());
    let counters = |look: &Value| look["devices"][0]["files"][0]["queues"][0]["counters"].clone();
    // The later ones may have been made while nothing was dequeued any more.
    let (first, last) = (&looks[1], &looks[3]);
    let number = |value: &Value| value.as_f64().context("no number");
    // Between two looks, and at one: what the device gives.
    let us = number(&last["at_us"])? - number(&first["at_us"])?;
    let between = (number(&counters(last)["frames"])? - number(&counters(first)["frames"])?) * 1e6 / us;
    let at_once = number(&counters(last)["fps"])?;
    ensure!(
        (0.7..1.4).contains(&(between / rate)) && (0.5..2.0).contains(&(at_once / rate)),
        "{rate} frames a second, and status says {between} and {at_once}"
    );

    let scraped = run("vidcompat", &["metrics", "--metrics", METRICS], AT_ONCE)?;
    let status: Value = serde_json::from_str(&run(
        "vidcompat",
        &["status", "--json", "--control", SOCKET],
        AT_ONCE,
    )?)?;
    let labels = format!("device=\"{}\",queue=\"capture\"", real(SPARE));
    let told = counters(&status);
    ensure!(told["frames"] == frames, "{frames} frames were dequeued: {told}");
    let copied = metric(
        &scraped,
        &format!("vidcompat_frames_total{{{labels},how=\"copied\"}}"),
    )?;
    let bytes = metric(&scraped, &format!("vidcompat_copied_bytes_total{{{labels}}}"))?;
    let waited = metric(
        &scraped,
        &format!("vidcompat_dequeue_latency_seconds_count{{{labels}}}"),
    )?;
    let sum = metric(
        &scraped,
        &format!("vidcompat_dequeue_latency_seconds_sum{{{labels}}}"),
    )?;
    let same = |metric: f64, count: u64| (metric - f64::from(u32::try_from(count).unwrap_or(0))).abs() < 0.5;
    ensure!(
        same(copied, frames.into()) && same(waited, frames.into()),
        "{scraped}"
    );
    ensure!(same(bytes, u64::from(frames) * u64::from(size)), "{scraped}");
    // A client that only ever waits: no more than a frame's time, and not nothing.
    let mean = sum / waited;
    ensure!(
        mean > 1e-6 && mean < 1.0 / rate,
        "{mean} s at {rate} frames a second"
    );
    figure(format!(
        "doctor: {rate:.1} frames a second, status says {between:.1} and {at_once:.1}; DQBUF answered after {:.0} us",
        mean * 1e6
    ));
    // By HTTP as others speak it, and not for others.
    let mut stream = UnixStream::connect(METRICS)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("# EOF\n"),
        "{answer}"
    );
    ensure!(fs::metadata(METRICS)?.mode() & 0o7777 == 0o660, "its mode");
    // What is closed is not forgotten.
    drop(video);
    let scraped = run("vidcompat", &["metrics", "--metrics", METRICS], AT_ONCE)?;
    ensure!(
        same(
            metric(
                &scraped,
                &format!("vidcompat_frames_total{{{labels},how=\"copied\"}}")
            )?,
            frames.into()
        ),
        "{scraped}"
    );
    let open = metric(
        &scraped,
        &format!("vidcompat_open_files{{device=\"{}\"}}", real(SPARE)),
    )?;
    ensure!(open.abs() < 0.5, "{scraped}");
    Ok(())
}

fn journal() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let folder = Path::new("/run/systemd/journal");
    fs::create_dir_all(folder)?;
    let path = folder.join("socket");
    ensure!(!path.exists(), "this guest has a journal");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(AT_ONCE))?;
    // As systemd starts a service: stderr is what JOURNAL_STREAM names.
    let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec vidcompatd \"$@\"";
    let device = real(SPARE).to_string();
    let words = [
        "-c",
        script,
        "sh",
        "--device",
        &device,
        "--control",
        SOCKET,
        "--metrics",
        "none",
    ];
    let daemon = Client::start("sh", &words);
    let mut said = Vec::new();
    let outcome = daemon.and_then(|daemon| {
        let ready = daemon.line()?;
        ensure!(ready == "ready", "on stderr: {ready}");
        let mut datagram = [0; 4096];
        while !said.iter().any(|fields: &BTreeMap<String, String>| {
            fields.get("MESSAGE").is_some_and(|message| message == "serving")
        }) {
            let length = socket.recv(&mut datagram)?;
            said.push(journal_fields(&datagram[..length])?);
        }
        daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
        Ok(())
    });
    drop(socket);
    fs::remove_file(&path)?;
    outcome.with_context(|| format!("{said:#?}"))?;
    let serving = said.last().context("nothing")?;
    for (field, value) in [
        ("VIDCOMPAT_DEVICE", device),
        ("VIDCOMPAT_NODE", ours(SPARE).to_string()),
        ("SYSLOG_IDENTIFIER", "vidcompatd".to_owned()),
        ("PRIORITY", "6".to_owned()),
    ] {
        ensure!(
            serving.get(field) == Some(&value),
            "{field} is not {value}: {serving:#?}"
        );
    }
    Ok(())
}

/// A message in the journal's own form: `NAME=value`, or the name, a length of eight bytes and the value, each with a line
/// feed behind it.
fn journal_fields(mut datagram: &[u8]) -> anyhow::Result<BTreeMap<String, String>> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = BTreeMap::new();
    while let Some(end) = datagram.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&datagram[..end], &datagram[end + 1..]);
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            fields.insert(text(&line[..at]), text(&line[at + 1..]));
            datagram = rest;
            continue;
        }
        let (length, rest) = rest.split_first_chunk::<8>().context("no length")?;
        let length = usize::try_from(u64::from_le_bytes(*length))?;
        let value = rest.get(..length).context("a value that is cut off")?;
        fields.insert(text(line), text(value));
        datagram = rest.get(length + 1..).unwrap_or_default();
    }
    Ok(fields)
}

fn bug_report() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let _daemon = daemon(&[SPARE])?;
    fs::create_dir_all(FOLDER)?;
    let path = format!("{FOLDER}/report");
    let args = ["bug-report", "--output", &path, "--control", SOCKET];
    run("vidcompat", &args, 4 * AT_ONCE)?;
    let report = fs::read_to_string(&path)?;
    for part in [
        "== versions ==",
        "Linux version ",
        "A legacy program ",
        "/dev/video66 for /dev/video2 (vivid): not open",
        "vivid ",
        "driver vivid, card vivid, bus platform:vivid-002",
        "# running: vidcompatd --control ",
    ] {
        ensure!(report.contains(part), "no `{part}` in\n{report}");
    }
    let (status, said) = run_any("vidcompat", &args, 4 * AT_ONCE)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    fs::remove_file(&path)?;
    ensure!(
        status.code() == Some(1) && said.contains("File exists"),
        "a file that exists is not touched: {status}: {said}"
    );
    Ok(())
}
