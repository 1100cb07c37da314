//! The daemon is killed, again and again and at any moment, under programs that stream. On Linux 6.9 and later none of them
//! sees an error or a wrong byte: what is missing is frames that the driver gave to nobody. On older kernels each ends with
//! an error within a second, and the next run works.
//!
//! Every frame is compared with one of the real node. Its upper rows hold time and number, so that no two frames are
//! alike: one that comes twice, or half, is seen.

mod kept;
mod plan;
mod programs;
mod steps;

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::Client;
use crate::daemon;
use crate::report::figure;
use crate::setup::{Test, is_6_1, is_long};
use crate::status;
use crate::video::ours;

pub use kept::Kept;
use plan::{COUNT, ENDLESS, FEW, Plan, Seen};
use programs::{Devices, adopting, mapping, reading, userptr};

pub const TESTS: &[(&str, Test)] = &[
    ("survival::userptr", || killed("USERPTR", userptr)),
    ("survival::programs_that_map", || killed("MMAP", mapping)),
    ("survival::adopted_memory", || killed("adoption", adopting)),
    ("survival::read", || killed("read", reading)),
    ("survival::every_step_of_a_stream", steps::every_step),
    (
        "survival::every_step_of_a_program",
        steps::every_step_of_a_program,
    ),
    ("survival::a_request_that_kills", steps::a_request_that_kills),
];

/// Of all runs together: 200 on Linux 6.12.
const KILLS: usize = 50;
/// Of a frame, where nobody says another.
const WIDTH: usize = 320;
const HEIGHT: usize = 180;
const FRAME: usize = WIDTH * HEIGHT * 2;
/// Rows that differ in each frame.
const TEXT_ROWS: usize = 64;
/// Frames in a second. Lost ones are counted by the driver.
const RATE: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(30);

/// A number below `bound`, by chance.
pub fn random(bound: u64) -> u64 {
    RandomState::new().hash_one(bound) % bound
}

/// Waits until the device has the program's own memory: counted by the daemon that has arranged it.
fn until_adopted(plan: &Plan<'_>, client: &mut Client) -> anyhow::Result<()> {
    plan.until_streaming(client)?;
    let begun = Instant::now();
    loop {
        let queue = status::queue(ours(plan.node.number()?), client.pid(), "video capture");
        if queue.as_ref().is_ok_and(|queue| queue["adopted"] == 4) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} is not adopted: {queue:?}",
            plan.call
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon dies again and again while all of a plan stream at once.
fn killed(what: &str, plans: fn(&Devices) -> anyhow::Result<Vec<Plan<'_>>>) -> anyhow::Result<()> {
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let plans = plans(&devices)?;
    let kept = Kept::start(&devices.all())?;
    if is_6_1() {
        return ends_at_once(&kept, &plans);
    }
    let mut running = Vec::new();
    for plan in &plans {
        running.push((plan, plan.start(COUNT)?, Seen::default()));
    }
    thread::sleep(Duration::from_millis(500));
    if what == "adoption" {
        for (plan, client, _) in &mut running {
            if plan.call.starts_with("survivor") {
                until_adopted(plan, client)?;
            }
        }
    }
    let kills = if is_long() { 20 * KILLS } else { KILLS };
    let mut down = Duration::ZERO;
    for kill in 0..kills {
        // Half of them while the next daemon begins.
        let most = if kill % 2 == 0 { 60 } else { 400 };
        thread::sleep(Duration::from_millis(random(most)));
        down = down.max(kept.kill(kill % 3 == 2)?);
        for (plan, client, seen) in &mut running {
            if client.has_ended()? {
                plan.check(client, COUNT, seen)
                    .with_context(|| format!("after {} kills", kill + 1))?;
                *client = plan.start(COUNT)?;
            }
        }
    }
    kept.until_ready()?;
    is_told(kills)?;
    for (plan, client, seen) in &mut running {
        client.close_stdin();
        plan.check(client, COUNT, seen).context("after all kills")?;
        figure(format!(
            "{what}, {kills} kills: {} {} on {}: {} frames in {} runs{}{}",
            plan.call.split_whitespace().next().unwrap_or_default(),
            plan.seat.name,
            plan.node,
            seen.frames,
            seen.runs,
            seen.lost.map_or(String::new(), |lost| format!(", {lost} lost")),
            match seen.longest {
                0 => String::new(),
                longest => format!(", at most {longest} ms between two"),
            }
        ));
    }
    figure(format!(
        "{what}, {kills} kills: at most {} ms until a daemon was ready again",
        down.as_millis()
    ));
    Ok(())
}

/// The status tells what became of so many deaths.
pub fn is_told(kills: usize) -> anyhow::Result<()> {
    let told = status::survival()?;
    let number = |name: &str| {
        told[name]
            .as_u64()
            .with_context(|| format!("no {name} in {told}"))
    };
    let restarts = number("restarts")?;
    // Who dies right when it begins has not begun.
    ensure!(
        told["kept_by"] == "keeper" && restarts > 0 && restarts <= kills as u64,
        "{told} after {kills} kills"
    );
    let resent = number("resent")?;
    ensure!(
        number("restored")? > 0 && number("given_up")? == 0 && resent > 0,
        "{told}"
    );
    figure(format!(
        "status after {kills} kills: {restarts} restarts, {} files went on, {} requests repeated, the last time it took {} us",
        number("restored")?,
        resent,
        number("took_us")?
    ));
    Ok(())
}

/// Without requests that are sent again: each program ends within a second of the kill, and the next run works.
fn ends_at_once(kept: &Kept, plans: &[Plan<'_>]) -> anyhow::Result<()> {
    let mut running = Vec::new();
    for plan in plans {
        running.push((plan, plan.start(ENDLESS)?));
    }
    for (plan, client) in &mut running {
        plan.until_streaming(client)?;
    }
    let killed = Instant::now();
    kept.kill(false)?;
    let mut last = Duration::ZERO;
    for (plan, client) in &mut running {
        let limit = Duration::from_secs(1);
        let left = limit.saturating_sub(killed.elapsed());
        let status = client
            .end(left)
            .with_context(|| format!("{} {}, {limit:?} after the kill", plan.call, plan.seat.name))?;
        last = killed.elapsed();
        // GStreamer and v4l2-ctl end with status 0 after some errors, and say them.
        let said = client.rest();
        ensure!(
            !status.success() || !said.is_empty(),
            "{} has seen no error",
            plan.call
        );
    }
    figure(format!(
        "{} programs have ended {} ms after the kill",
        running.len(),
        last.as_millis()
    ));
    // The nodes are made anew.
    kept.until_ready()?;
    for (plan, client) in &mut running {
        *client = plan.start(FEW)?;
        plan.until_streaming(client)?;
    }
    for (plan, client) in &mut running {
        client.close_stdin();
        plan.check(client, FEW, &mut Seen::default())
            .context("the next run")?;
    }
    Ok(())
}
