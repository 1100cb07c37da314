//! Adoption by the real daemon: which user pointers become the device's own memory, that the frames are the right ones in
//! either case, and that the memory is the program's own again afterwards.

use std::fs;

use anyhow::{Context, ensure};

use crate::client::{AT_ONCE, Client};
use crate::daemon;
use crate::nodes::{Kind, vivid};
use crate::picture::Picture;
use crate::report::figure;
use crate::setup::{Test, both_real};
use crate::shim::Seat;
use crate::status::{self, How};
use crate::video::ours;

pub const TESTS: &[(&str, Test)] = &[
    ("shim_adoption::whole_pages_become_the_devices_memory", adopted),
    (
        "shim_adoption::other_memory_is_copied_and_the_reason_told",
        copied,
    ),
    ("shim_adoption::a_dma_contig_camera_lends_its_own_buffers", contig),
    ("shim_adoption::it_can_be_switched_off", switched_off),
];

/// What the picture is.
const FRAME: &str = "/tmp/shim-frame";

/// How a program's buffers are to be served.
enum Served {
    Adopted,
    /// With this reason.
    Copied(&'static str),
}

/// Plays helper::adopt on a camera, once for each of its ends of a queue.
fn play(instance: u32, kind: &str, at: usize, served: &Served, seat: &Seat) -> anyhow::Result<()> {
    let what = || format!("{kind} at {at} on vivid {instance}");
    let node = ours(vivid(instance, Kind::VideoCapture)?.number()?);
    let at = at.to_string();
    let mut client = seat.start(&["guest-suite", "--helper", "adopt", "NODE", kind, &at, FRAME])?;
    for end in ["REQBUFS(0)", "close"] {
        let said = next(&client).with_context(what)?;
        let is_mapped = said.contains("dmabuf");
        ensure!(said.starts_with("streams, "), "{}: {said}", what());
        if !both_real() {
            let queue = status::queue(node, client.pid(), "video capture")?;
            let plane = status::plane(&queue)?;
            match served {
                Served::Adopted => ensure!(
                    plane.how == How::Adopted && is_mapped && queue["counters"]["copied"] == 0,
                    "{}, {said}: {queue}",
                    what()
                ),
                Served::Copied(reason) => ensure!(
                    plane.how == How::Copied && !is_mapped && queue["not_adopted"].get(reason).is_some(),
                    "{}, {said}: {queue}",
                    what()
                ),
            }
            figure(format!(
                "{}: {:?} {}, {}",
                what(),
                plane.how,
                queue["counters"],
                queue["not_adopted"]
            ));
        }
        client.say("on")?;
        let said = next(&client).with_context(what)?;
        ensure!(
            said.starts_with(end) && !said.contains("dmabuf"),
            "{}: {said}",
            what()
        );
        client.say("on")?;
    }
    let status = client.end(AT_ONCE)?;
    let said = client.rest();
    ensure!(
        status.success() && said.trim() == "done",
        "{}: {status}: {said}",
        what()
    );
    Ok(())
}

fn next(client: &Client) -> anyhow::Result<String> {
    client.line().map_err(|error| error.context(client.rest()))
}

fn prepare() -> anyhow::Result<()> {
    daemon::shared()?;
    fs::write(FRAME, Picture::take()?.bytes()).map_err(Into::into)
}

fn on(instance: u32, cases: &[(&str, usize, Served)]) -> anyhow::Result<()> {
    prepare()?;
    let seat = Seat::preloaded(&vivid(instance, Kind::VideoCapture)?)?;
    for (kind, at, served) in cases {
        play(instance, kind, *at, served, &seat)?;
    }
    Ok(())
}

fn adopted() -> anyhow::Result<()> {
    on(
        0,
        &[
            ("anonymous", 0, Served::Adopted),
            ("anonymous", 4096, Served::Adopted),
        ],
    )
}

fn copied() -> anyhow::Result<()> {
    use Served::Copied;
    on(
        0,
        &[
            ("anonymous", 64, Copied("it does not begin with a page")),
            ("malloc", 16, Copied("it does not begin with a page")),
            ("shared", 0, Copied("it is shared memory, or a file's")),
            ("anonymous-locked", 0, Copied("it is locked")),
            ("two-mappings", 0, Copied("it is several mappings")),
        ],
    )
}

fn contig() -> anyhow::Result<()> {
    on(
        1,
        &[
            ("anonymous", 0, Served::Adopted),
            ("anonymous", 64, Served::Copied("it does not begin with a page")),
        ],
    )
}

/// By the program's environment: the daemon is told so.
fn switched_off() -> anyhow::Result<()> {
    prepare()?;
    let node = vivid(0, Kind::VideoCapture)?;
    let seat = Seat::preloaded(&node)?.with_environment("VIDCOMPAT_ADOPT=0");
    play(
        0,
        "anonymous",
        0,
        &Served::Copied("adoption is switched off in the program's environment"),
        &seat,
    )
}
