//! Deaths at certain calls: see tests/clients/preload/die_at.c.

use std::fs;
use std::time::Instant;

use anyhow::{Context, ensure};

use super::PATIENCE;
use super::kept::Kept;
use super::plan::{COUNT, Expect, Seen, plan};
use super::programs::{Devices, native};
use crate::daemon;
use crate::report::figure;
use crate::setup::{is_6_1, is_long};
use crate::shim::Seat;

/// Between the device's answer and the client's there are few steps. The daemon dies at each of them, under programs that
/// stream; chance would seldom find them.
pub fn every_step() -> anyhow::Result<()> {
    if is_6_1() {
        return Ok(());
    }
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let Devices {
        camera,
        contig,
        output,
        ..
    } = &devices;
    let plans = [
        plan(
            camera,
            Seat::plain(camera),
            "survivor NODE userptr",
            Expect::Itself,
        ),
        plan(contig, Seat::run(contig), "survivor -p NODE mmap", Expect::Itself),
        plan(
            output,
            Seat::plain(output),
            "survivor NODE output",
            Expect::Itself,
        ),
    ];
    let kept = Kept::start_mortal(&devices.all())?;
    let mut running = Vec::new();
    for plan in &plans {
        let mut client = plan.start(COUNT)?;
        plan.until_streaming(&mut client)?;
        running.push((plan, client, Seen::default()));
    }
    let most = if is_long() { 20 } else { 4 };
    let mut steps = 0;
    for call in ["pwrite", "writev", "copy", "qbuf", "dqbuf"] {
        // Some of them say what is taken up again.
        let most = if call == "pwrite" { 2 * most } else { most };
        for number in 1..=most {
            let at = format!("{call} {number}");
            kept.arm(&at)?;
            kept.kills.set(kept.kills.get() + 1);
            kept.until_ready().with_context(|| at.clone())?;
            steps += 1;
            for (plan, client, _) in &mut running {
                ensure!(
                    !client.has_ended()?,
                    "{} has not outlived a death at {at}: {}",
                    plan.call,
                    client.rest()
                );
            }
        }
    }
    for (plan, client, seen) in &mut running {
        client.close_stdin();
        plan.check(client, COUNT, seen).context("after all deaths")?;
    }
    figure(format!("a daemon has died at {steps} steps of three streams"));
    Ok(())
}

/// The same from the open of a program to its end.
pub fn every_step_of_a_program() -> anyhow::Result<()> {
    if is_6_1() {
        return Ok(());
    }
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let camera = &devices.camera;
    let expect = Expect::Frames(native(camera)?);
    let call = "v4l2-ctl -d NODE --stream-user=3 --stream-count=COUNT --stream-to=FILE --verbose";
    let plan = plan(camera, Seat::plain(camera), call, expect);
    let kept = Kept::start_mortal(&[camera])?;
    let mut steps = 0;
    for (call, most) in [("pwrite", 16), ("reqbufs", 3), ("streamoff", 3)] {
        for number in 1..=most {
            let at = format!("{call} {number}");
            kept.arm(&at)?;
            kept.until_ready()?;
            let mut client = plan.start(3)?;
            plan.check(&mut client, 3, &mut Seen::default())
                .with_context(|| format!("a death at {at}"))?;
            if kept.deaths() == kept.kills.get() {
                // It has not come so far.
                break;
            }
            kept.kills.set(kept.kills.get() + 1);
            steps += 1;
            kept.until_ready()?;
        }
    }
    ensure!(steps >= 10, "{steps} steps");
    figure(format!("a daemon has died at {steps} steps of a program"));
    Ok(())
}

/// The number of the ioctl that each daemon dies of, and of `VIDIOC_LOG_STATUS`, which nobody else makes.
const DIE_AT_EACH: &str = "/tmp/die-at-each";
const LOG_STATUS: &str = "70";

/// A request that each daemon dies of is given up, and only its caller sees an error: who streams meanwhile does not.
pub fn a_request_that_kills() -> anyhow::Result<()> {
    if is_6_1() {
        return Ok(());
    }
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let Devices { camera, contig, .. } = &devices;
    let seat = Seat::plain(contig);
    let streaming = plan(contig, seat, "survivor NODE userptr", Expect::Itself);
    let kept = Kept::start_mortal(&[camera, contig])?;
    let mut stream = streaming.start(COUNT)?;
    streaming.until_streaming(&mut stream)?;
    fs::write(DIE_AT_EACH, LOG_STATUS)?;
    kept.kill(true)?;
    let begun = Instant::now();
    let mut poison = Seat::plain(camera).start(&["v4l2-ctl", "-d", "NODE", "--log-status"])?;
    let status = poison.end(PATIENCE);
    let took = begun.elapsed();
    fs::remove_file(DIE_AT_EACH)?;
    status.with_context(|| kept.keeper.log())?;
    let said = poison.rest();
    let log = kept.keeper.log();
    ensure!(said.contains("Input/output error"), "{said}\n{log}");
    let deaths = log.matches("killed by SIGSEGV").count();
    ensure!(deaths == 3, "{deaths} deaths: {log}");
    ensure!(log.contains("again and again over one request"), "{log}");
    let mut seen = Seen::default();
    ensure!(!stream.has_ended()?, "{}", stream.rest());
    stream.close_stdin();
    streaming.check(&mut stream, COUNT, &mut seen)?;
    figure(format!(
        "a request that each daemon dies of is given up after {deaths} of them and {} ms",
        took.as_millis()
    ));
    Ok(())
}
