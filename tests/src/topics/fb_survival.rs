//! The daemon is killed, again and again and at any moment, under a program that draws on a real framebuffer by write(): on
//! Linux 6.9 and later it sees no error, and no byte is elsewhere than it has put it. On older kernels it ends with an error
//! within a second, and the next run works.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::fb_ioctls::{NoConsole, Side, vfb};
use super::survival::{Kept, is_told, random};
use crate::client::Client;
use crate::daemon;
use crate::report::figure;
use crate::setup::{Test, is_6_1, is_long};

pub const TESTS: &[(&str, Test)] = &[("fb_survival::a_program_that_draws", drawing)];

const KILLS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(30);

fn start(side: &Side) -> anyhow::Result<Client> {
    let client = Client::start("fb_survivor", &[side.ours()])?;
    let begun = Instant::now();
    while client.line_if_any().is_none_or(|line| line != "drawing") {
        ensure!(begun.elapsed() < PATIENCE, "it does not draw: {}", client.rest());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(client)
}

fn ends_well(client: &mut Client) -> anyhow::Result<String> {
    client.close_stdin();
    let status = client.end(PATIENCE);
    let said = client.rest();
    let status = status.with_context(|| said.clone())?;
    ensure!(status.success(), "{status}: {said}");
    Ok(said.trim().to_owned())
}

fn drawing() -> anyhow::Result<()> {
    daemon::stop_shared();
    let side = vfb()?;
    // What it is on the real node.
    let _console = NoConsole::begin()?;
    ends_well(&mut Client::start("fb_survivor", &[side.real()])?).context("the real node")?;
    let kept = Kept::start_args(&["--fb", side.real()], &[])?;
    let mut client = start(&side)?;
    if is_6_1() {
        return ends_at_once(&kept, &side, client);
    }
    let kills = if is_long() { 10 * KILLS } else { KILLS };
    let mut down = Duration::ZERO;
    for kill in 0..kills {
        // Half of them while the next daemon begins.
        thread::sleep(Duration::from_millis(random(if kill % 2 == 0 {
            60
        } else {
            400
        })));
        down = down.max(kept.kill(kill % 3 == 2)?);
        ensure!(
            !client.has_ended()?,
            "it has ended after {} kills: {}",
            kill + 1,
            client.rest()
        );
    }
    kept.until_ready()?;
    is_told(kills)?;
    figure(format!(
        "{kills} kills under a program that draws: {}; at most {} ms until a daemon was ready again",
        ends_well(&mut client)?,
        down.as_millis()
    ));
    Ok(())
}

fn ends_at_once(kept: &Kept, side: &Side, mut client: Client) -> anyhow::Result<()> {
    let limit = Duration::from_secs(1);
    let killed = Instant::now();
    kept.kill(false)?;
    let status = client.end(limit).context("a second after the kill")?;
    figure(format!(
        "a program that draws has ended {} ms after the kill: {}",
        killed.elapsed().as_millis(),
        client.rest().trim()
    ));
    ensure!(!status.success(), "{status}: it has seen no error");
    kept.until_ready()?;
    ends_well(&mut start(side)?).context("the next run").map(drop)
}
