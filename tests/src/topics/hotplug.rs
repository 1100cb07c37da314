//! The daemon as a service: devices that come and go, who may open them, configuration that is read again, a node that ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use crate::client::{AT_ONCE, Client, run, run_any};
use crate::daemon::Daemon;
use crate::modules::{again, reload, remove};
use crate::report::figure;
use crate::service::{CONFIG, cameras, configure, is_ours, plug, start, unplug, until, until_said, works};
use crate::setup::Test;
use crate::sys::Pages;
use crate::video::Video;

pub const TESTS: &[(&str, Test)] = &[
    (
        "hotplug::devices_that_come_and_go_take_their_nodes_along",
        come_and_go,
    ),
    (
        "hotplug::a_client_of_a_device_that_goes_is_told_what_the_driver_says",
        go_while_open,
    ),
    ("hotplug::owner_mode_and_access_list_follow_the_real_node", access),
    (
        "hotplug::a_configuration_is_read_again_while_a_client_streams",
        reload_while_streaming,
    ),
    (
        "hotplug::a_mistake_in_the_configuration_is_told_and_changes_nothing",
        mistake,
    ),
    (
        "hotplug::a_node_that_ends_is_made_anew_and_given_up_after_the_third_time",
        node_ends,
    ),
    (
        "hotplug::check_config_says_what_would_be_served_and_who_says_so",
        check_config,
    ),
];

const MODULE: &str = "vivid";

/// The nodes of ours in `/dev`, and those of devices.
fn nodes() -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut ours, mut real) = (vec![], vec![]);
    for entry in fs::read_dir("/dev")?.flatten() {
        let path = entry.path().display().to_string();
        let kinds = [
            "/dev/video",
            "/dev/vbi",
            "/dev/radio",
            "/dev/swradio",
            "/dev/v4l-touch",
        ];
        if !kinds
            .iter()
            .any(|kind| path.starts_with(kind) && !path.ends_with("video4linux"))
        {
            continue;
        }
        if !entry.file_type()?.is_dir() {
            if is_ours(&path) { &mut ours } else { &mut real }.push(path);
        }
    }
    ours.sort();
    real.sort();
    Ok((ours, real))
}

/// What ours beside it is called.
fn beside(real: &str) -> String {
    let digits = real.trim_start_matches(|letter: char| letter != '-' && !letter.is_ascii_digit());
    // The 4 of v4l-touch.
    let digits = digits
        .rsplit_once(|letter: char| !letter.is_ascii_digit())
        .map_or(digits, |(_, end)| end);
    let prefix = real.strip_suffix(digits).unwrap_or(real);
    let number: u32 = digits.parse().unwrap_or(0);
    format!("{prefix}{}", number + 64)
}

/// Waits until each real node has one of ours, and no other is there.
fn until_all_served(count: usize) -> anyhow::Result<Duration> {
    until("each real node has one of ours beside it", || {
        let Ok((ours, real)) = nodes() else { return false };
        let mut expected: Vec<_> = real.iter().map(|real| beside(real)).collect();
        expected.sort();
        real.len() == count && ours == expected
    })
    .with_context(|| format!("{:?}", nodes()))
}

fn come_and_go() -> anyhow::Result<()> {
    cameras()?;
    remove(MODULE)?;
    let daemon = start("")?;
    ensure!(nodes()?.0.is_empty(), "nodes without a device: {:?}", nodes()?);
    // All kinds of nodes: capture, output, VBI, radio, SDR, metadata, touch.
    run("modprobe", &[MODULE, "n_devs=1"], 4 * AT_ONCE)?;
    let (_, real) = nodes()?;
    let came = until_all_served(real.len())?;
    ensure!(real.len() >= 10, "{real:?}");
    for node in &real {
        // Two drivers' worth of questions, for each kind.
        run("v4l2-ctl", &["-d", &beside(node), "-D"], 4 * AT_ONCE)?;
    }
    run("rmmod", &[MODULE], 4 * AT_ONCE)?;
    let went = until_all_served(0)?;
    figure(format!(
        "hotplug: {} nodes of ours stand {} ms after modprobe has returned, and are gone {} ms after rmmod",
        real.len(),
        came.as_millis(),
        went.as_millis()
    ));
    // The same again and again, faster than anybody can follow; and under other names.
    for round in 0..5 {
        let names = if round % 2 == 0 {
            "vid_cap_nr=5,3"
        } else {
            "vid_cap_nr=3,5"
        };
        let parameters = [
            "n_devs=2",
            "node_types=0x1,0x1",
            "num_inputs=1,1",
            "input_types=0,0",
            names,
        ];
        run("modprobe", &[&[MODULE], &parameters[..]].concat(), 4 * AT_ONCE)?;
        if round < 3 {
            run("rmmod", &[MODULE], 4 * AT_ONCE)?;
        }
        if round >= 3 {
            until_all_served(2)?;
            works("/dev/video67")?;
            works("/dev/video69")?;
            run("rmmod", &[MODULE], 4 * AT_ONCE)?;
        }
    }
    until_all_served(0)?;
    drop(daemon);
    again(MODULE)
}

/// How calls of a file whose device is gone are answered.
fn after_the_end(
    node: &str,
    go_away: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(Vec<String>, Video)> {
    let video = Video::at(Path::new(node), 0)?;
    let size = video.sizeimage()?;
    let memory = Pages::new(4 * size as usize)?;
    video.reqbufs(2)?;
    for index in 0..2 {
        video.qbuf(index, memory.at(index as usize * size as usize), size)?;
    }
    video.streamon()?;
    video.dqbuf()?;
    go_away()?;
    let mut said = vec![format!("{:?}", video.sizeimage())];
    said.push(format!("{:?}", video.reqbufs(0)));
    said.push(format!("{:?}", video.qbuf(0, memory.at(0), size).map(drop)));
    said.push(format!("{:?}", video.streamoff()));
    Ok((said, video))
}

fn go_while_open() -> anyhow::Result<()> {
    cameras()?;
    let (native, closed) = after_the_end("/dev/video0", unplug)?;
    drop(closed);
    again(MODULE)?;
    let daemon = start("")?;
    until_all_served(2)?;
    let mut vanished = Duration::ZERO;
    let (served, open) = after_the_end("/dev/video64", || {
        unplug()?;
        vanished = until("the name has gone", || !Path::new("/dev/video64").exists())?;
        Ok(())
    })?;
    ensure!(native == served, "the real node says {native:?}, ours {served:?}");
    ensure!(native[0] == "Err(ENODEV)", "{native:?}");
    figure(format!(
        "hotplug: the name has gone {} ms after the device",
        vanished.as_millis()
    ));
    ensure!(
        Path::new("/sys/class/cuse/video64").exists(),
        "the node of an open file has ended"
    );
    // It ends with its last file.
    drop(open);
    until("the node has ended", || {
        !Path::new("/sys/class/cuse/video64").exists()
    })?;

    // Devices come while the old one's file is open: as that has its number still, they have others.
    plug()?;
    until_all_served(2)?;
    works("/dev/video64")?;
    let (_, open) = after_the_end("/dev/video64", unplug)?;
    plug()?;
    until_all_served(2)?;
    ensure!(nodes()?.1 == ["/dev/video1", "/dev/video2"], "{:?}", nodes()?);
    works("/dev/video65")?;
    works("/dev/video66")?;
    let said = open.sizeimage();
    ensure!(said == Err(Errno::ENODEV), "the old file says {said:?}");
    drop((open, daemon));
    again(MODULE)
}

/// `system.posix_acl_access`: root, a user and the mask may read and write, the group may read.
fn list(user: u32) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 6, user),
        (0x04, 4, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

const LIST: &str = "system.posix_acl_access";

fn list_of(path: &str) -> Option<Vec<u8>> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::getxattr(path, LIST, &mut list[..]).ok()?;
    list.truncate(length);
    Some(list)
}

/// Owner, group, mode and list.
fn rights(path: &str) -> anyhow::Result<(u32, u32, u32, Option<Vec<u8>>)> {
    let node = fs::metadata(path)?;
    Ok((node.uid(), node.gid(), node.mode() & 0o7777, list_of(path)))
}

fn access() -> anyhow::Result<()> {
    cameras()?;
    let (real, ours) = ("/dev/video0", "/dev/video64");
    let follows = |what: &str| {
        until(
            what,
            || matches!((rights(real), rights(ours)), (Ok(real), Ok(ours)) if real == ours),
        )
        .with_context(|| format!("{:?}, {:?}", rights(real), rights(ours)))
    };
    // Before the daemon begins, and while it runs.
    rustix::fs::setxattr(real, LIST, &list(65534), rustix::fs::XattrFlags::empty())?;
    let daemon = start("")?;
    ensure!(
        rights(ours)? == rights(real)?,
        "{:?}, {:?}",
        rights(real),
        rights(ours)
    );
    ensure!(
        rights(ours)?.3 == Some(list(65534)),
        "no list: {:?}",
        rights(ours)
    );
    let took = follows("at the start")?;
    rustix::fs::setxattr(real, LIST, &list(1234), rustix::fs::XattrFlags::empty())?;
    follows("another person")?;
    rustix::fs::removexattr(real, LIST)?;
    follows("nobody's list")?;
    fs::set_permissions(real, Permissions::from_mode(0o640))?;
    follows("mode")?;
    chown(real, Some(12), Some(34))?;
    let last = follows("owner")?;
    figure(format!(
        "hotplug: rights are carried within {} and {} ms",
        took.as_millis(),
        last.as_millis()
    ));
    ensure!(rights(ours)?.0 == 12, "{:?}", rights(ours));
    chown(real, Some(0), Some(0))?;
    fs::set_permissions(real, Permissions::from_mode(0o600))?;
    drop(daemon);
    Ok(())
}

fn reload_while_streaming() -> anyhow::Result<()> {
    cameras()?;
    let socket_path = "/tmp/vidcompat-test-notify";
    let _ = fs::remove_file(socket_path);
    let socket = UnixDatagram::bind(socket_path)?;
    socket.set_read_timeout(Some(AT_ONCE))?;
    let told = |wanted: &str| -> anyhow::Result<()> {
        let mut text = [0; 512];
        loop {
            let length = socket
                .recv(&mut text)
                .with_context(|| format!("{wanted} was not told"))?;
            if String::from_utf8_lossy(&text[..length])
                .lines()
                .any(|line| line.starts_with(wanted))
            {
                return Ok(());
            }
        }
    };
    configure("")?;
    let daemon = Daemon::start_with(&["--config", CONFIG], &[("NOTIFY_SOCKET", socket_path)])?;
    // With it, in the same message, READY=1.
    told("STATUS=serving 2 devices, 0 files open")?;
    until_all_served(2)?;
    let video = Video::at(Path::new("/dev/video64"), 0)?;
    let size = video.sizeimage()?;
    let memory = Pages::new(4 * size as usize)?;
    video.reqbufs(4)?;
    for index in 0..4 {
        video.qbuf(index, memory.at(index as usize * size as usize), size)?;
    }
    video.streamon()?;
    let mut next = 0;
    let mut frames = |count: u32| -> anyhow::Result<()> {
        for _ in 0..count {
            let buffer = video.dqbuf()?;
            ensure!(buffer.sequence >= next, "the stream has begun again");
            next = buffer.sequence + 1;
            video.qbuf(buffer.index, buffer.m, buffer.length)?;
        }
        Ok(())
    };
    frames(3)?;
    // Another device is served no more, other bounds, and the one that streams is to be served otherwise.
    configure(
        "[memory]\nper-client = \"64K\"\n[[device]]\npath = \"/dev/video0\"\nadopt = false\n\
         [[device]]\npath = \"/dev/video1\"\nway = \"off\"\n",
    )?;
    kill(daemon.pid(), Signal::SIGHUP)?;
    told("RELOADING=1")?;
    told("READY=1")?;
    until("the other node has gone", || !Path::new("/dev/video65").exists())?;
    frames(5)?;
    // The new bound is for whoever comes now.
    let late = Video::at(Path::new("/dev/video64"), 0)?;
    ensure!(
        late.reqbufs(2) == Err(Errno::EBUSY),
        "the real queue has an owner"
    );
    drop(late);
    frames(5)?;
    configure("")?;
    kill(daemon.pid(), Signal::SIGHUP)?;
    told("READY=1")?;
    until("the other node is there again", || is_ours("/dev/video65"))?;
    works("/dev/video65")?;
    frames(5)?;
    ensure!(
        !daemon.log().contains("ended node=/dev/video64"),
        "{}",
        daemon.log()
    );
    drop(video);
    configure("[memory]\nper-client = \"64K\"\n")?;
    kill(daemon.pid(), Signal::SIGHUP)?;
    told("READY=1")?;
    let refused = works("/dev/video64").err().map(|error| format!("{error:#}"));
    ensure!(
        refused.as_ref().is_some_and(|said| said.contains("ENOMEM")),
        "64K for a frame: {refused:?}"
    );
    fs::remove_file(socket_path)?;
    Ok(())
}

fn mistake() -> anyhow::Result<()> {
    cameras()?;
    let wrong = "[[device]]\nall = true\nway = \"sidee\"\n";
    let sentence = format!("{CONFIG}:3: `device.way`: ");
    let daemon = start("")?;
    until_all_served(2)?;
    configure(wrong)?;
    kill(daemon.pid(), Signal::SIGHUP)?;
    until_said(&daemon, &sentence)?;
    ensure!(
        daemon.log().contains("the configuration stays as it was"),
        "{}",
        daemon.log()
    );
    works("/dev/video64")?;
    works("/dev/video65")?;
    drop(daemon);
    let (status, said) = Daemon::refuse(&["--config", CONFIG])?;
    ensure!(
        status.code() == Some(78) && said.contains(&sentence),
        "{status}: {said}"
    );
    ensure!(nodes()?.0.is_empty(), "{:?}", nodes()?);
    let (status, said) = run_any("vidcompatd", &["--check-config", "--config", CONFIG], AT_ONCE)?;
    ensure!(
        status.code() == Some(78) && said.contains(&sentence),
        "{status}: {said}"
    );
    let (status, said) = Daemon::refuse(&["--config", "/tmp/there-is-none.toml"])?;
    ensure!(
        status.code() == Some(78) && said.contains("/tmp/there-is-none.toml cannot be read"),
        "{said}"
    );
    Ok(())
}

fn node_ends() -> anyhow::Result<()> {
    cameras()?;
    let daemon = start("")?;
    until_all_served(2)?;
    let mut other = Client::start(
        "v4l2-ctl",
        &["-d", "/dev/video65", "--stream-user=4", "--stream-count=100000"],
    )?;
    let inode = || fs::metadata("/dev/video64").ok().map(|node| node.ino());
    for round in 1..=3 {
        let before = inode();
        fs::write("/sys/class/cuse/video64/abort", "1")?;
        if round < 3 {
            until("the node is made anew", || inode().is_some() && inode() != before)?;
            works("/dev/video64")?;
        }
    }
    until_said(&daemon, "its node has ended 3 times within 60 seconds")?;
    until("the node has gone", || inode().is_none())?;
    works("/dev/video0")?;
    ensure!(
        !other.has_ended()?,
        "the other device's client has ended: {}",
        other.rest()
    );
    kill(daemon.pid(), Signal::SIGHUP)?;
    until("it is tried again after SIGHUP", || is_ours("/dev/video64"))?;
    works("/dev/video64")?;
    ensure!(
        !other.has_ended()?,
        "the other device's client has ended: {}",
        other.rest()
    );
    other.signal(Signal::SIGTERM)?;
    other.end(AT_ONCE)?;
    Ok(())
}

fn check_config() -> anyhow::Result<()> {
    cameras()?;
    configure(
        "[memory]\nper-client = \"64M\"\n\n[[device]]\npath = \"/dev/video1\"\nway = \"takeover\"\n\
         [[device]]\ndriver = \"no such*\"\n[[framebuffer]]\nwhat = \"memory:64x48x32\"\n",
    )?;
    let begin = Instant::now();
    let said = run("vidcompatd", &["--check-config", "--config", CONFIG], AT_ONCE)?;
    for line in [
        format!("memory for each client: 64M ({CONFIG}:2)"),
        "control socket: /run/vidcompat/control.sock (built in)".to_owned(),
        "  /dev/video0 (vivid, vivid): side node /dev/video64 (built in)".to_owned(),
        format!("  /dev/video1 (vivid, vivid): taken over ({CONFIG}:4)"),
        format!("  (the entry of {CONFIG}:7 fits no device that is here now)"),
        format!("  memory:64x48x32 ({CONFIG}:10)"),
    ] {
        ensure!(
            said.lines().any(|said| said == line),
            "no line `{line}` in\n{said}"
        );
    }
    ensure!(nodes()?.0.is_empty(), "it has changed something: {:?}", nodes()?);
    figure(format!("--check-config takes {} ms", begin.elapsed().as_millis()));
    // A device of the command line must be there; one of the configuration need not.
    reload(
        MODULE,
        &["n_devs=1", "node_types=0x1", "num_inputs=1", "input_types=0"],
    )?;
    let (status, said) = Daemon::refuse(&["--device", "/dev/video1"])?;
    ensure!(
        status.code() == Some(1) && said.contains("/dev/video1: there is no such device"),
        "{said}"
    );
    configure("[[device]]\npath = \"/dev/video1\"\n[[device]]\npath = \"/dev/video0\"\nway = \"off\"\n")?;
    let daemon = Daemon::start(&["--config", CONFIG])?;
    ensure!(nodes()?.0.is_empty(), "{:?}", nodes()?);
    drop(daemon);
    again(MODULE)
}
